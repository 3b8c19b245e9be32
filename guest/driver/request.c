// SPDX-License-Identifier: GPL-2.0
/*
 * One request at a time on the requestq, and what its response says.
 *
 * Every number of a response is checked: the host is trusted with the values,
 * not with the kernel's memory.
 */
#include <linux/build_bug.h>
#include <linux/ctype.h>
#include <linux/overflow.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "internal.h"

static int status_to_errno(u32 status)
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
		return -EAGAIN;
	case VIRTIO_SECRETS_S_TOOBIG:
		return -EMSGSIZE;
	case VIRTIO_SECRETS_S_UNAVAILABLE:
		return -ENODATA;
	default:
		return -EPROTO;
	}
}

bool secrets_name_is_valid(const u8 *name)
{
	size_t i = 0;

	if (!isascii(name[0]) || isdigit(name[0]))
		return false;
	while (i < SECRETS_NAME_SIZE && isascii(name[i]) &&
	       (isalnum(name[i]) || name[i] == '_'))
		i++;
	return i > 0 && i < SECRETS_NAME_SIZE &&
	       !memchr_inv(name + i, 0, SECRETS_NAME_SIZE - i);
}

static void copy_name(u8 *to, const char *name)
{
	strscpy_pad((char *)to, name, VIRTIO_SECRETS_NAME_SIZE);
}

/*
 * Sends what is in vs->request and waits for the response in vs->response,
 * behind which further device-writable bytes may lie in @tail. Leaves the bytes
 * that the device wrote in vs->response_len. Needs vs->request_lock.
 */
static int send_request(struct virtio_secrets *vs, u16 type,
			unsigned int request_len, unsigned int response_len,
			const struct secret_pages *tail)
{
	struct scatterlist sg_request, sg_response[1 + SECRETS_MAX_CHUNKS];
	struct scatterlist *sgs[] = { &sg_request, sg_response };
	struct virtio_secrets_resp *response = vs->response;
	struct virtio_secrets_req *head = vs->request;
	unsigned int i, chunks = tail ? tail->count : 0;
	int ret;

	BUILD_BUG_ON(sizeof(struct virtio_secrets_attach_req) +
		     SECRETS_MAX_CHUNKS * sizeof(struct virtio_secrets_range) >
		     SECRETS_REQUEST_SIZE);

	head->type = cpu_to_le16(type);
	head->reserved0 = 0;
	head->reserved1 = 0;

	sg_init_one(&sg_request, vs->request, request_len);
	sg_init_table(sg_response, 1 + chunks);
	sg_set_buf(&sg_response[0], vs->response, response_len);
	for (i = 0; i < chunks; i++)
		sg_set_page(&sg_response[1 + i], tail->chunks[i],
			    PAGE_SIZE << tail->order, 0);

	if (vs->stopped)
		return -EIO;
	ret = virtqueue_add_sgs(vs->requestq, sgs, 1, 1, vs, GFP_KERNEL);
	if (ret)
		return ret;
	virtqueue_kick(vs->requestq);
	/*
	 * Not interruptible: until it is used, the chain belongs to the device.
	 */
	wait_event(vs->answer_wait,
		   virtqueue_get_buf(vs->requestq, &vs->response_len) ||
		   READ_ONCE(vs->stopped));
	if (vs->stopped)
		return -EIO;
	if (vs->response_len < sizeof(*response) ||
	    vs->response_len > response_len +
			       (tail ? secret_pages_size(tail) : 0))
		return -EPROTO;
	return status_to_errno(le32_to_cpu(response->status));
}

/* Appends what vs->response lists to @list, which has room for @room more */
static int append_entries(struct virtio_secrets *vs,
			  struct secrets_listing *list, unsigned int room)
{
	const struct virtio_secrets_list_resp *response = vs->response;
	u32 i, count = le32_to_cpu(response->count);

	if (vs->response_len < struct_size(response, entries, count))
		return -EPROTO;
	for (i = 0; i < count && room; i++) {
		const struct virtio_secrets_list_entry *from =
			&response->entries[i];
		struct secrets_entry *to = &list->entries[list->count];
		u32 len = le32_to_cpu(from->value_len);

		if (!secrets_name_is_valid(from->name) || !len ||
		    len > vs->max_value_len) {
			dev_warn(&vs->vdev->dev,
				 "the host listed a malformed secret\n");
			continue;
		}
		memcpy(to->name, from->name, sizeof(to->name));
		to->version = le64_to_cpu(from->version);
		to->value_len = len;
		to->uid = le32_to_cpu(from->uid);
		to->gid = le32_to_cpu(from->gid);
		to->mode = le32_to_cpu(from->mode) & 0444;
		list->count++;
		room--;
	}
	return count;
}

/*
 * Lists all secrets. Free list->entries with kvfree(). -EAGAIN: the device is
 * frozen, or its list changed faster than it could be read.
 */
int secrets_request_list(struct virtio_secrets *vs,
			 struct secrets_listing *list)
{
	struct virtio_secrets_list_req *request = vs->request;
	const struct virtio_secrets_list_resp *response = vs->response;
	u32 start = 0, total = 0;
	int ret;

	memset(list, 0, sizeof(*list));
	mutex_lock(&vs->request_lock);
	do {
		request->start = cpu_to_le32(start);
		request->reserved = 0;
		ret = send_request(vs, VIRTIO_SECRETS_LIST, sizeof(*request),
				   SECRETS_RESPONSE_SIZE, NULL);
		if (ret)
			break;
		ret = -EPROTO;
		if (vs->response_len < sizeof(*response))
			break;
		if (!start) {
			list->epoch = le64_to_cpu(response->head.epoch);
			total = min(le32_to_cpu(response->total),
				    SECRETS_MAX_COUNT);
			list->entries = kvcalloc(total, sizeof(*list->entries),
						 GFP_KERNEL);
			ret = -ENOMEM;
			if (!list->entries && total)
				break;
		}
		ret = -EAGAIN;
		if (list->epoch != le64_to_cpu(response->head.epoch))
			break;
		ret = append_entries(vs, list, total - list->count);
		if (ret > 0)
			start += ret;
	} while (ret > 0 && start < total);
	mutex_unlock(&vs->request_lock);

	if (ret < 0)
		kvfree(list->entries);
	return min(ret, 0);
}

/* -EMSGSIZE leaves the length that is needed in @len */
int secrets_request_attach(struct virtio_secrets *vs, const char *name,
			   const struct secret_pages *pages, u32 *handle,
			   u32 *len, u64 *version)
{
	struct virtio_secrets_attach_req *request = vs->request;
	const struct virtio_secrets_attach_resp *response = vs->response;
	unsigned int i;
	int ret;

	mutex_lock(&vs->request_lock);
	copy_name(request->name, name);
	request->range_count = cpu_to_le32(pages->count);
	request->reserved = 0;
	for (i = 0; i < pages->count; i++) {
		request->ranges[i].address =
			cpu_to_le64(page_to_phys(pages->chunks[i]));
		request->ranges[i].length =
			cpu_to_le64(PAGE_SIZE << pages->order);
	}
	ret = send_request(vs, VIRTIO_SECRETS_ATTACH,
			   struct_size(request, ranges, pages->count),
			   sizeof(*response), NULL);
	if (!ret || ret == -EMSGSIZE) {
		if (vs->response_len < sizeof(*response)) {
			ret = -EPROTO;
		} else {
			*handle = le32_to_cpu(response->handle);
			*len = le32_to_cpu(response->value_len);
			*version = le64_to_cpu(response->version);
		}
	}
	mutex_unlock(&vs->request_lock);
	return ret;
}

int secrets_request_detach(struct virtio_secrets *vs, u32 handle)
{
	struct virtio_secrets_detach_req *request = vs->request;
	int ret;

	mutex_lock(&vs->request_lock);
	request->handle = cpu_to_le32(handle);
	request->reserved = 0;
	ret = send_request(vs, VIRTIO_SECRETS_DETACH, sizeof(*request),
			   sizeof(struct virtio_secrets_resp), NULL);
	mutex_unlock(&vs->request_lock);
	return ret;
}

/* -EMSGSIZE leaves the length that is needed in @len */
int secrets_request_get(struct virtio_secrets *vs, const char *name,
			const struct secret_pages *pages, u32 *len,
			u64 *version)
{
	struct virtio_secrets_get_req *request = vs->request;
	const struct virtio_secrets_get_resp *response = vs->response;
	int ret;

	mutex_lock(&vs->request_lock);
	copy_name(request->name, name);
	ret = send_request(vs, VIRTIO_SECRETS_GET, sizeof(*request),
			   sizeof(*response), pages);
	if (!ret || ret == -EMSGSIZE) {
		if (vs->response_len < sizeof(*response)) {
			ret = -EPROTO;
		} else {
			*len = le32_to_cpu(response->value_len);
			*version = le64_to_cpu(response->version);
			if (!ret &&
			    *len != vs->response_len - sizeof(*response))
				ret = -EPROTO;
		}
	}
	mutex_unlock(&vs->request_lock);
	return ret;
}

int secrets_request_ack(struct virtio_secrets *vs, u64 epoch)
{
	struct virtio_secrets_ack_req *request = vs->request;
	int ret;

	mutex_lock(&vs->request_lock);
	request->epoch = cpu_to_le64(epoch);
	ret = send_request(vs, VIRTIO_SECRETS_ACK, sizeof(*request),
			   sizeof(struct virtio_secrets_resp), NULL);
	mutex_unlock(&vs->request_lock);
	return ret;
}
