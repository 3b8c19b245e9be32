// SPDX-License-Identifier: GPL-2.0-only
/*
 * Requests to the device, one at a time. Answers are the host's: nothing in
 * them is trusted to be in bounds.
 */
#include <linux/ctype.h>
#include <linux/gfp.h>
#include <linux/overflow.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uidgid.h>

#include "driver.h"

/*
 * Seconds. The device answers at once, but the host it runs on may be very
 * busy. They are counted one by one: the clock of a restored guest may jump.
 */
#define SECRETS_TIMEOUT		30

/* A list that is in several answers can be cut by a new epoch */
#define SECRETS_LIST_TRIES	8

#define SECRETS_REQUEST_SIZE \
	(sizeof(struct virtio_secrets_attach_req) + \
	 SECRETS_MAX_PAGES * sizeof(struct virtio_secrets_range))
#define SECRETS_RESPONSE_SIZE	8192

/* [A-Za-z_][A-Za-z0-9_]*, at most 127 bytes, padded with zero bytes */
bool secrets_name_valid(const u8 *name)
{
	size_t len = strnlen(name, SECRETS_NAME_SIZE);
	size_t i;

	if (len == 0 || len == SECRETS_NAME_SIZE || isdigit(name[0]))
		return false;
	for (i = 0; i < len; i++)
		if (!isascii(name[i]) || (!isalnum(name[i]) && name[i] != '_'))
			return false;
	return !memchr_inv(name + len, 0, SECRETS_NAME_SIZE - len);
}

static int secrets_errno(u32 status)
{
	switch (status) {
	case VIRTIO_SECRETS_S_OK:
		return 0;
	case VIRTIO_SECRETS_S_NOENT:
		return -ENOENT;
	case VIRTIO_SECRETS_S_DENIED:
		return -EACCES;
	case VIRTIO_SECRETS_S_REVOKED:
		return -EKEYREVOKED;
	case VIRTIO_SECRETS_S_FROZEN:
		return -EBUSY;
	case VIRTIO_SECRETS_S_TOOBIG:
		return -EMSGSIZE;
	case VIRTIO_SECRETS_S_UNAVAILABLE:
		return -EAGAIN;
	case VIRTIO_SECRETS_S_INVALID:
		return -EINVAL;
	default:
		return -EPROTO;
	}
}

void secrets_answered(struct virtqueue *vq)
{
	struct secrets_device *vs = vq->vdev->priv;

	complete(&vs->answered);
}

/* There will be no answers; whoever waits for one is to leave. */
void secrets_give_up(struct secrets_device *vs)
{
	WRITE_ONCE(vs->failed, true);
	complete(&vs->answered);
}

/*
 * Waits for the one request. Looks for an answer only after an interrupt: those
 * that find nothing to do count as unhandled. They may come for no reason.
 */
static int secrets_wait(struct secrets_device *vs, u32 *used)
{
	int left = SECRETS_TIMEOUT;

	do {
		if (READ_ONCE(vs->failed) || virtqueue_is_broken(vs->requestq))
			return -EIO;
		if (!left)
			return -ETIMEDOUT;
		if (!wait_for_completion_timeout(&vs->answered, HZ))
			left--;
	} while (!virtqueue_get_buf(vs->requestq, used));
	return 0;
}

/*
 * Asks with the first @req_len bytes of vs->request, whose header has been
 * cleared. The answer goes to vs->response, and from there on as @in says; it
 * is to have @min bytes if its status is OK or TOOBIG.
 */
static int secrets_ask_sg(struct secrets_device *vs, u16 type, size_t req_len,
			  struct scatterlist *in, size_t min, u32 *used)
{
	struct virtio_secrets_resp *resp = vs->response;
	struct virtio_secrets_req *req = vs->request;
	struct scatterlist out, *sgs[] = { &out, in };
	int err;

	lockdep_assert_held(&vs->request_lock);
	if (!vs->requestq || vs->stuck)
		return -ENODEV;

	req->type = cpu_to_le16(type);
	sg_init_one(&out, req, req_len);
	reinit_completion(&vs->answered);
	err = virtqueue_add_sgs(vs->requestq, sgs, 1, 1, vs, GFP_KERNEL);
	if (err)
		return err;
	/* A kick that fails leaves a broken queue, which waiting finds */
	virtqueue_kick(vs->requestq);
	err = secrets_wait(vs, used);
	if (err) {
		vs->stuck = true;
		dev_err(&vs->vdev->dev, "the device does not answer\n");
		return err;
	}

	if (*used < sizeof(*resp))
		return -EPROTO;
	err = secrets_errno(le32_to_cpu(resp->status));
	if ((!err || err == -EMSGSIZE) && *used < min)
		return -EPROTO;
	return err;
}

/* The same with an answer of @min to @max bytes; @used is not over @max. */
static int secrets_ask(struct secrets_device *vs, u16 type, size_t req_len,
		       size_t min, size_t max, u32 *used)
{
	struct scatterlist in;
	int err;

	sg_init_one(&in, vs->response, max);
	err = secrets_ask_sg(vs, type, req_len, &in, min, used);
	*used = min_t(size_t, *used, max);
	return err;
}

/* Whether an error is one that leaves the buffers with the device. */
static bool secrets_kept(struct secrets_device *vs, int err)
{
	return vs->stuck && err != -ENODEV;
}

static void *secrets_begin(struct secrets_device *vs, size_t size)
{
	mutex_lock(&vs->request_lock);
	memset(vs->request, 0, size);
	return vs->request;
}

static void secrets_end(struct secrets_device *vs)
{
	mutex_unlock(&vs->request_lock);
}

/* Takes one entry out of the device's reach; says whether it is valid. */
static bool secrets_entry_parse(const struct virtio_secrets_list_entry *from,
				struct secrets_entry *to)
{
	memcpy(to->name, from->name, sizeof(to->name));
	to->version = le64_to_cpu(from->version);
	to->value_len = le32_to_cpu(from->value_len);
	to->uid = le32_to_cpu(from->uid);
	to->gid = le32_to_cpu(from->gid);
	to->mode = le32_to_cpu(from->mode);
	return secrets_name_valid(to->name) &&
	       to->value_len > 0 && to->value_len <= SECRETS_MAX_LEN &&
	       !(to->mode & ~0444) &&
	       uid_valid(make_kuid(&init_user_ns, to->uid)) &&
	       gid_valid(make_kgid(&init_user_ns, to->gid));
}

/*
 * Asks for the entries from @start on. The first answer (@entries still NULL)
 * fixes the total and the epoch. Invalid entries become ones without a name.
 */
static int secrets_list_part(struct secrets_device *vs,
			     struct secrets_entry **entries, u32 start,
			     u32 *total, u64 *epoch)
{
	struct virtio_secrets_list_req *req = secrets_begin(vs, sizeof(*req));
	struct virtio_secrets_list_resp *resp = vs->response;
	u32 used = 0, count, i;
	int err;

	req->start = cpu_to_le32(start);
	err = secrets_ask(vs, VIRTIO_SECRETS_LIST, sizeof(*req), sizeof(*resp),
			  SECRETS_RESPONSE_SIZE, &used);
	if (err)
		goto out;

	err = -EPROTO;
	count = le32_to_cpu(READ_ONCE(resp->count));
	if (count > (used - sizeof(*resp)) / sizeof(resp->entries[0]))
		goto out;
	if (start == 0) {
		*total = le32_to_cpu(READ_ONCE(resp->total));
		*epoch = le64_to_cpu(resp->head.epoch);
		if (*total > SECRETS_MAX_COUNT)
			goto out;
		*entries = kvcalloc(max(*total, 1U), sizeof(**entries),
				    GFP_KERNEL);
		if (!*entries) {
			err = -ENOMEM;
			goto out;
		}
	} else if (*epoch != le64_to_cpu(resp->head.epoch)) {
		err = -ESTALE;
		goto out;
	}
	if (count > *total - start || (count == 0 && start < *total))
		goto out;
	for (i = 0; i < count; i++) {
		if (secrets_entry_parse(&resp->entries[i],
					&(*entries)[start + i]))
			continue;
		(*entries)[start + i].name[0] = 0;
		dev_warn(&vs->vdev->dev,
			 "secret number %u is declared in a way that is not supported\n",
			 start + i);
	}
	err = count;
out:
	secrets_end(vs);
	return err;
}

/* Lists the secrets of one epoch. The caller frees @entries with kvfree(). */
int secrets_list(struct secrets_device *vs, struct secrets_entry **entries,
		 u32 *count, u64 *epoch)
{
	int tries, err;
	u32 start;

	for (tries = 0; tries < SECRETS_LIST_TRIES; tries++) {
		*entries = NULL;
		start = 0;
		do {
			err = secrets_list_part(vs, entries, start, count,
						epoch);
			if (err < 0)
				break;
			start += err;
		} while (start < *count);
		if (err >= 0)
			return 0;
		kvfree(*entries);
		if (err != -ESTALE)
			return err;
	}
	return -EBUSY;
}

/*
 * Has the device fill the value's pages, and takes over length and version.
 * With -EMSGSIZE, @needed is the length that the value has now. value->attached
 * says whether the device may write the pages, whatever is returned.
 */
int secrets_attach(struct secrets_device *vs, struct secrets_value *value,
		   u32 *needed)
{
	struct virtio_secrets_attach_resp *resp = vs->response;
	struct virtio_secrets_attach_req *req;
	size_t size = struct_size(req, ranges, value->page_count);
	unsigned int i;
	u32 used = 0, len = 0;
	int err;

	req = secrets_begin(vs, size);
	memcpy(req->name, value->name, sizeof(req->name));
	req->range_count = cpu_to_le32(value->page_count);
	for (i = 0; i < value->page_count; i++) {
		req->ranges[i].address =
			cpu_to_le64(page_to_phys(value->pages[i]));
		req->ranges[i].length = cpu_to_le64(PAGE_SIZE);
	}
	err = secrets_ask(vs, VIRTIO_SECRETS_ATTACH, size, sizeof(*resp),
			  sizeof(*resp), &used);
	/* Unless it said no, the device may have attached them */
	value->attached = !err || err == -EPROTO || secrets_kept(vs, err);
	if (!err || err == -EMSGSIZE) {
		len = le32_to_cpu(READ_ONCE(resp->value_len));
		value->handle = le32_to_cpu(READ_ONCE(resp->handle));
		*needed = len;
		if (!err && (value->handle == 0 || len == 0 ||
			     len > value->page_count * PAGE_SIZE))
			err = -EPROTO;
	}
	if (!err) {
		spin_lock_irq(&vs->lock);
		value->version = le64_to_cpu(resp->version);
		WRITE_ONCE(value->len, len);
		ktime_get_real_ts64(&value->time);
		spin_unlock_irq(&vs->lock);
	}
	secrets_end(vs);
	return err;
}

/* Ends the device's use of the value's pages, which it leaves zero. */
int secrets_detach(struct secrets_device *vs, struct secrets_value *value)
{
	struct virtio_secrets_detach_req *req = secrets_begin(vs, sizeof(*req));
	u32 used = 0;
	int err = -EPROTO;

	if (value->handle) {
		req->handle = cpu_to_le32(value->handle);
		err = secrets_ask(vs, VIRTIO_SECRETS_DETACH, sizeof(*req),
				  sizeof(struct virtio_secrets_resp),
				  sizeof(struct virtio_secrets_resp), &used);
		if (!err || err == -ENOENT) {
			value->attached = false;
			value->handle = 0;
			err = 0;
		}
	}
	secrets_end(vs);
	return err;
}

int secrets_ack(struct secrets_device *vs, u64 epoch)
{
	struct virtio_secrets_ack_req *req = secrets_begin(vs, sizeof(*req));
	u32 used = 0;
	int err;

	req->epoch = cpu_to_le64(epoch);
	err = secrets_ask(vs, VIRTIO_SECRETS_ACK, sizeof(*req),
			  sizeof(struct virtio_secrets_resp),
			  sizeof(struct virtio_secrets_resp), &used);
	secrets_end(vs);
	return err;
}

void secrets_fetch_free(void *buffer, u32 room)
{
	memzero_explicit(buffer, room);
	free_pages_exact(buffer, room);
}

/*
 * Fetches a value of at most @room bytes, not 0, into a buffer to be freed with
 * secrets_fetch_free(). @len is also set with -EMSGSIZE.
 */
void *secrets_fetch(struct secrets_device *vs, const u8 *name, u32 room,
		    u32 *len, u64 *version)
{
	struct virtio_secrets_get_resp *resp = vs->response;
	struct virtio_secrets_get_req *req;
	struct scatterlist in[2];
	void *buffer;
	u32 used = 0;
	int err;

	buffer = alloc_pages_exact(room, GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN);
	if (!buffer)
		return ERR_PTR(-ENOMEM);

	req = secrets_begin(vs, sizeof(*req));
	memcpy(req->name, name, sizeof(req->name));
	sg_init_table(in, ARRAY_SIZE(in));
	sg_set_buf(&in[0], resp, sizeof(*resp));
	sg_set_buf(&in[1], buffer, room);
	err = secrets_ask_sg(vs, VIRTIO_SECRETS_GET, sizeof(*req), in,
			     sizeof(*resp), &used);
	if (secrets_kept(vs, err)) {
		vs->kept = buffer;
		vs->kept_size = room;
		buffer = NULL;
	} else if (!err || err == -EMSGSIZE) {
		*len = le32_to_cpu(READ_ONCE(resp->value_len));
		*version = le64_to_cpu(resp->version);
		if (!err && (*len == 0 || *len > room ||
			     *len > used - sizeof(*resp)))
			err = -EPROTO;
	}
	secrets_end(vs);

	if (err && buffer)
		secrets_fetch_free(buffer, room);
	return err ? ERR_PTR(err) : buffer;
}

int secrets_requests_init(struct secrets_device *vs)
{
	vs->request = kmalloc(SECRETS_REQUEST_SIZE, GFP_KERNEL);
	vs->response = kmalloc(SECRETS_RESPONSE_SIZE, GFP_KERNEL);
	return vs->request && vs->response ? 0 : -ENOMEM;
}

/* The device was reset and its queues are gone: all buffers are ours again. */
void secrets_requests_stopped(struct secrets_device *vs)
{
	lockdep_assert_held(&vs->request_lock);
	vs->requestq = NULL;
	vs->stuck = false;
	if (vs->kept) {
		memzero_explicit(vs->kept, vs->kept_size);
		free_pages_exact(vs->kept, vs->kept_size);
		vs->kept = NULL;
	}
}
