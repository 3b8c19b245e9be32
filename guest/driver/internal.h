/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of the driver share.
 *
 * core.c	the virtio device: probe, remove, queues, events, epoch
 * request.c	one request and its response on the requestq
 * values.c	values in attached pages, and which of them is current
 * secretsfs.c	the file system: values as files
 * secrets_dev.c /dev/secrets: ioctls and poll
 */
#ifndef _SECRETS_INTERNAL_H
#define _SECRETS_INTERNAL_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/llist.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/uidgid.h>
#include <linux/uio.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "secrets.h"
#include "virtio_secrets.h"

/* Physically contiguous pieces of a value: they and a request fit one chain */
#define SECRETS_MAX_CHUNKS	32

/* The device's own limit on attached bytes; no value can be longer */
#define SECRETS_MAX_VALUE	(64U << 20)

/* The device's own limit on handles; a longer list is cut */
#define SECRETS_MAX_COUNT	4096U

/* Holds an ATTACH with all its ranges */
#define SECRETS_REQUEST_SIZE	1024

/* Holds a LIST of 107 entries */
#define SECRETS_RESPONSE_SIZE	16384

/* Kernel pages for a value: never high memory, never movable, never swapped */
struct secret_pages {
	unsigned int order;
	unsigned int count;
	struct page *chunks[SECRETS_MAX_CHUNKS];
};

struct virtio_secrets {
	struct kref refs;
	struct workqueue_struct *wq;
	struct miscdevice misc;

	/* NULL once the driver has left the device */
	struct virtio_device *vdev;
	spinlock_t vdev_lock;	/* guards vdev */

	/* One request at a time, in buffers that are only then in use */
	struct mutex request_lock;
	struct virtqueue *requestq;
	void *request;
	void *response;
	unsigned int response_len;
	unsigned int max_chunks;
	u32 max_value_len;
	wait_queue_head_t answer_wait;
	/* The device uses no buffer any more, so nothing need be waited for */
	bool stopped;

	struct virtqueue *eventq;
	struct virtio_secrets_event *events;
	struct delayed_work event_work;
	/* Events taken from the queue and not yet acted on */
	bool rotated;
	u64 rehydrated;
	u64 told_epoch;

	/* The epoch whose changes have all been made; woken when it changes */
	u64 epoch;
	wait_queue_head_t epoch_wait;

	/* Values that have pages, in the order of their inode numbers */
	struct mutex lock;
	struct list_head values;
	u64 next_ino;
	struct llist_head released;
	struct work_struct release_work;

	spinlock_t inode_lock;	/* guards secret_value.inode and its size */
};

/* One version of one secret in attached pages; an inode is one of these */
struct secret_value {
	struct kref refs;
	struct virtio_secrets *vs;
	struct list_head link;
	struct llist_node released;
	char name[SECRETS_NAME_SIZE];
	u64 ino;
	kuid_t uid;
	kgid_t gid;
	umode_t mode;
	/* Whether this is what the name stands for now */
	bool current_version;
	/* 0, or what every further read returns */
	int error;
	u32 handle;
	/* Changed by the host in place, only when the guest is restored */
	u32 len;
	u64 version;
	u32 rewrites;
	struct inode *inode;
	struct secret_pages pages;
};

/* core.c */
struct virtio_secrets *virtio_secrets_get(void);
void virtio_secrets_put(struct virtio_secrets *vs);
u32 virtio_secrets_epoch(struct virtio_secrets *vs);
int virtio_secrets_settle(struct virtio_secrets *vs, u32 *epoch);

/* request.c */
struct secrets_listing {
	u64 epoch;
	unsigned int count;
	struct secrets_entry *entries;
};

bool secrets_name_is_valid(const u8 *name);
int secrets_request_list(struct virtio_secrets *vs,
			 struct secrets_listing *list);
int secrets_request_attach(struct virtio_secrets *vs, const char *name,
			   const struct secret_pages *pages, u32 *handle,
			   u32 *len, u64 *version);
int secrets_request_detach(struct virtio_secrets *vs, u32 handle);
int secrets_request_get(struct virtio_secrets *vs, const char *name,
			const struct secret_pages *pages, u32 *len,
			u64 *version);
int secrets_request_ack(struct virtio_secrets *vs, u64 epoch);

/* values.c */
static inline size_t secret_pages_size(const struct secret_pages *pages)
{
	return (size_t)pages->count << (PAGE_SHIFT + pages->order);
}

int secret_pages_alloc(struct virtio_secrets *vs, struct secret_pages *pages,
		       size_t len);
size_t secret_pages_copy(const struct secret_pages *pages, size_t offset,
			 size_t len, struct iov_iter *to);
void secret_pages_free(struct secret_pages *pages);
void secret_value_put(struct secret_value *value);
struct secret_value *secrets_find(struct virtio_secrets *vs, const char *name);
struct secret_value *secrets_next(struct virtio_secrets *vs, u64 ino);
int secrets_refresh(struct virtio_secrets *vs, u64 rehydrated);
void secrets_revoke(struct virtio_secrets *vs, const char *name);
void secrets_end_all(struct virtio_secrets *vs, int error);
void secrets_release_work(struct work_struct *work);

/* secretsfs.c */
void secretsfs_zap(struct secret_value *value);
void secretsfs_resize(struct secret_value *value);
int secretsfs_register(void);
void secretsfs_unregister(void);

/* secrets_dev.c */
int secrets_dev_register(struct virtio_secrets *vs);

#endif /* _SECRETS_INTERNAL_H */
