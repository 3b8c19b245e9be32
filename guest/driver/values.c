// SPDX-License-Identifier: GPL-2.0
/*
 * Values in attached pages, and which of them is current.
 *
 * A name without a current value has no file: refused, revoked, unavailable.
 * A value lives until nothing uses it; then its handle is detached and its
 * pages are wiped and freed, by a worker, since the last user may be in a place
 * where no request can be made.
 */
#include <linux/fs.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "internal.h"

static void secret_pages_wipe(const struct secret_pages *pages)
{
	unsigned int i;

	for (i = 0; i < pages->count; i++)
		memzero_explicit(page_address(pages->chunks[i]),
				 PAGE_SIZE << pages->order);
}

void secret_pages_free(struct secret_pages *pages)
{
	unsigned int i;

	secret_pages_wipe(pages);
	for (i = 0; i < pages->count; i++)
		__free_pages(pages->chunks[i], pages->order);
	pages->count = 0;
}

int secret_pages_alloc(struct virtio_secrets *vs, struct secret_pages *pages,
		       size_t len)
{
	/* At least one byte: the order of nothing is not defined */
	size_t chunk_size = DIV_ROUND_UP(max_t(size_t, len, 1), vs->max_chunks);

	pages->count = 0;
	pages->order = get_order(chunk_size);
	while (secret_pages_size(pages) < len) {
		struct page *chunk = alloc_pages(GFP_KERNEL | __GFP_ZERO |
						 __GFP_NOWARN, pages->order);

		if (!chunk) {
			secret_pages_free(pages);
			return -ENOMEM;
		}
		pages->chunks[pages->count++] = chunk;
	}
	return 0;
}

/* Copies bytes that lie within the pages; returns how many could be written */
size_t secret_pages_copy(const struct secret_pages *pages, size_t offset,
			 size_t len, struct iov_iter *to)
{
	const size_t chunk_size = PAGE_SIZE << pages->order;
	size_t done = 0;

	while (done < len) {
		size_t at = (offset + done) & (chunk_size - 1);
		size_t part = min(len - done, chunk_size - at);
		struct page *chunk =
			pages->chunks[(offset + done) / chunk_size];
		size_t copied = copy_to_iter(page_address(chunk) + at, part,
					     to);

		done += copied;
		if (copied < part)
			break;
	}
	return done;
}

static void secret_value_release(struct kref *refs)
{
	struct secret_value *value =
		container_of(refs, struct secret_value, refs);

	llist_add(&value->released, &value->vs->released);
	queue_work(value->vs->wq, &value->vs->release_work);
}

void secret_value_put(struct secret_value *value)
{
	kref_put(&value->refs, secret_value_release);
}

void secrets_release_work(struct work_struct *work)
{
	struct virtio_secrets *vs =
		container_of(work, struct virtio_secrets, release_work);
	struct secret_value *value, *next;
	struct llist_node *all = llist_del_all(&vs->released);

	llist_for_each_entry_safe(value, next, all, released) {
		mutex_lock(&vs->lock);
		list_del(&value->link);
		mutex_unlock(&vs->lock);
		/*
		 * If the request fails the device has been reset or has
		 * stopped, and does not write these pages either.
		 */
		secrets_request_detach(vs, value->handle);
		secret_pages_free(&value->pages);
		kfree(value);
		virtio_secrets_put(vs);
	}
}

static struct secret_value *find_locked(struct virtio_secrets *vs,
					const char *name)
{
	struct secret_value *value;

	list_for_each_entry(value, &vs->values, link)
		if (value->current_version && !strcmp(value->name, name))
			return value;
	return NULL;
}

/* The current value of a name, with a reference, or NULL */
struct secret_value *secrets_find(struct virtio_secrets *vs, const char *name)
{
	struct secret_value *value;

	mutex_lock(&vs->lock);
	value = find_locked(vs, name);
	if (value)
		kref_get(&value->refs);
	mutex_unlock(&vs->lock);
	return value;
}

/* The first current value from inode number @ino on, with a reference */
struct secret_value *secrets_next(struct virtio_secrets *vs, u64 ino)
{
	struct secret_value *value, *found = NULL;

	mutex_lock(&vs->lock);
	list_for_each_entry(value, &vs->values, link) {
		if (value->current_version && value->ino >= ino) {
			kref_get(&value->refs);
			found = value;
			break;
		}
	}
	mutex_unlock(&vs->lock);
	return found;
}

/* The name no longer stands for this value; open files keep it */
static void retire(struct secret_value *value)
{
	WRITE_ONCE(value->current_version, false);
	secret_value_put(value);
}

/* Nothing can read this value any more, through whatever file or mapping */
static void end_value(struct secret_value *value, int error)
{
	if (value->error)
		return;
	WRITE_ONCE(value->error, error);
	secretsfs_zap(value);
}

/* Attaches fresh pages and makes them what the name stands for */
static int attach(struct virtio_secrets *vs, const struct secrets_entry *entry)
{
	struct secret_value *value;
	u32 len = entry->value_len;
	int ret;

	value = kzalloc(sizeof(*value), GFP_KERNEL);
	if (!value)
		return -ENOMEM;
	memcpy(value->name, entry->name, sizeof(value->name));
	value->uid = make_kuid(&init_user_ns, entry->uid);
	value->gid = make_kgid(&init_user_ns, entry->gid);
	value->mode = entry->mode;
	ret = -EPROTO;
	if (!uid_valid(value->uid) || !gid_valid(value->gid))
		goto err_value;

	/* A longer value may take the listed one's place before it is attached */
	do {
		size_t size;

		ret = secret_pages_alloc(vs, &value->pages, len);
		if (ret)
			goto err_value;
		size = secret_pages_size(&value->pages);
		ret = secrets_request_attach(vs, value->name, &value->pages,
					     &value->handle, &len,
					     &value->version);
		if (ret)
			secret_pages_free(&value->pages);
		if (ret == -EMSGSIZE && (len <= size || len > vs->max_value_len))
			ret = -EPROTO;
	} while (ret == -EMSGSIZE);
	if (ret)
		goto err_value;

	ret = -EPROTO;
	if (!value->handle || !len || len > secret_pages_size(&value->pages))
		goto err_handle;
	value->len = len;
	value->ino = vs->next_ino++;
	value->current_version = true;
	kref_init(&value->refs);
	kref_get(&vs->refs);
	value->vs = vs;
	list_add_tail(&value->link, &vs->values);
	return 0;

err_handle:
	secrets_request_detach(vs, value->handle);
	secret_pages_free(&value->pages);
err_value:
	kfree(value);
	return ret;
}

static const struct secrets_entry *find_entry(const struct secrets_listing *list,
					      const char *name)
{
	unsigned int i;

	for (i = 0; i < list->count; i++)
		if (!strcmp(list->entries[i].name, name))
			return &list->entries[i];
	return NULL;
}

/*
 * The guest was restored: the host has filled the pages with the secret's
 * current value. It is the one in @entry unless the list is of a later epoch.
 */
static void rewritten(struct secret_value *value,
		      const struct secrets_entry *entry, bool later)
{
	if (value->error)
		return;
	if (!entry) {
		end_value(value, -EKEYREVOKED);
		return;
	}
	if (entry->version == value->version && entry->value_len == value->len)
		return;
	if (later || entry->value_len > secret_pages_size(&value->pages)) {
		end_value(value, -ESTALE);
		return;
	}
	value->version = entry->version;
	WRITE_ONCE(value->len, entry->value_len);
	WRITE_ONCE(value->rewrites, value->rewrites + 1);
	secretsfs_resize(value);
}

static bool is_listed_as(const struct secret_value *value,
			 const struct secrets_entry *entry)
{
	return !value->error && value->version == entry->version &&
	       value->len == entry->value_len && value->mode == entry->mode &&
	       from_kuid(&init_user_ns, value->uid) == entry->uid &&
	       from_kgid(&init_user_ns, value->gid) == entry->gid;
}

/*
 * Makes the current values those that the host lists. @rehydrated is the epoch
 * at which the host last wrote all pages anew, or 0 if it did not. -EAGAIN: the
 * device is frozen; call again.
 */
int secrets_refresh(struct virtio_secrets *vs, u64 rehydrated)
{
	struct secrets_listing list;
	struct secret_value *value, *next;
	unsigned int i;
	int ret;

	ret = secrets_request_list(vs, &list);
	if (ret)
		return ret;

	mutex_lock(&vs->lock);
	list_for_each_entry_safe(value, next, &vs->values, link) {
		const struct secrets_entry *entry =
			find_entry(&list, value->name);

		if (rehydrated)
			rewritten(value, entry, list.epoch != rehydrated);
		if (!entry && value->current_version)
			retire(value);
	}
	for (i = 0; i < list.count; i++) {
		const struct secrets_entry *entry = &list.entries[i];
		int err;

		value = find_locked(vs, entry->name);
		if (value && is_listed_as(value, entry))
			continue;
		err = attach(vs, entry);
		if (err == -EAGAIN || err == -EIO) {
			ret = err;
			break;
		}
		if (err)
			dev_warn(&vs->vdev->dev, "%s is not available: %pe\n",
				 entry->name, ERR_PTR(err));
		if (value)
			retire(value);
	}
	mutex_unlock(&vs->lock);
	kvfree(list.entries);
	return ret;
}

/* The host has wiped every page of this secret */
void secrets_revoke(struct virtio_secrets *vs, const char *name)
{
	struct secret_value *value;

	mutex_lock(&vs->lock);
	list_for_each_entry(value, &vs->values, link) {
		if (strcmp(value->name, name))
			continue;
		end_value(value, -EKEYREVOKED);
		if (value->current_version)
			retire(value);
	}
	mutex_unlock(&vs->lock);
}

/* The device has been reset: no value is left */
void secrets_end_all(struct virtio_secrets *vs, int error)
{
	struct secret_value *value;

	mutex_lock(&vs->lock);
	list_for_each_entry(value, &vs->values, link) {
		end_value(value, error);
		secret_pages_wipe(&value->pages);
		if (value->current_version)
			retire(value);
	}
	mutex_unlock(&vs->lock);
}
