/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the driver share.
 *
 * A secret has a current value and, while files that opened them stay open,
 * older ones. A value owns the pages that the device fills. Only the worker
 * changes values; where it cannot run (probe, remove, suspend) so do these.
 */
#ifndef VIRTIO_SECRETS_DRIVER_H
#define VIRTIO_SECRETS_DRIVER_H

#include <linux/completion.h>
#include <linux/kref.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/time64.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "secrets.h"
#include "virtio_secrets.h"

/* One page a range: the ranges that one ATTACH can carry */
#define SECRETS_MAX_PAGES	256
#define SECRETS_MAX_LEN		(SECRETS_MAX_PAGES * PAGE_SIZE)

/* The device allows no more handles than this */
#define SECRETS_MAX_COUNT	4096

struct secrets_device {
	struct kref ref;
	struct virtio_device *vdev;

	/* Guards the request queue and what belongs to its one request */
	struct mutex request_lock;
	struct completion answered;
	/* NULL while the device is stopped */
	struct virtqueue *requestq;
	void *request;
	void *response;
	/* The device kept a request: ask nothing more before a reset */
	bool stuck;
	/* The device has failed or is to be stopped: do not wait for it */
	bool failed;
	/* The buffer for a value it kept */
	void *kept;
	size_t kept_size;

	struct virtqueue *eventq;
	struct virtio_secrets_event *events;

	/* The worker's */
	struct work_struct work;
	/* The last epoch that an event told */
	u64 told;
	/* The last epoch that the device was told is acted on */
	u64 acked;
	u64 last_ino;
	u32 last_id;
	/* There is news that only a new list tells */
	bool relist;
	/* The epoch in which the host filled all attached pages again, or 0 */
	u64 rehydrated;

	/* Guards what follows, and every value's place, current and fields */
	spinlock_t lock;
	/* The worker may be queued */
	bool listening;
	/* Removed: there will be no more values */
	bool dead;
	/* Values are those of @epoch unless the device's generation differs */
	bool settled;
	/* The device or its news cannot be dealt with: there is no waiting */
	bool broken;
	u32 generation;
	u64 epoch;
	struct list_head values;
	/* Without references; to be detached and freed */
	struct list_head released;

	/* Wakes when @settled, @broken, @epoch or @dead change */
	wait_queue_head_t wait;

	/* Guards @sb */
	struct mutex sb_lock;
	struct super_block *sb;
};

struct secrets_value {
	struct kref ref;
	struct secrets_device *vs;
	struct list_head node;
	u8 name[SECRETS_NAME_SIZE];
	/* Of the secret, for readers of the folder */
	u32 id;
	/* Of this value */
	u64 ino;
	u64 version;
	u32 len;
	kuid_t uid;
	kgid_t gid;
	umode_t mode;
	struct timespec64 time;
	/* The one that the secret's name finds; holds a reference */
	bool current_value;
	/* What readers get instead of bytes, or 0 */
	int error;
	/* How often the host has put another value into the pages */
	u32 rewrites;

	/* The worker's: the device may write the pages */
	bool attached;
	u32 handle;
	/* The epoch in which the secret was last rotated, or 0 */
	u64 rotated;
	bool listed;

	unsigned int page_count;
	struct page *pages[];
};

/* core.c */
struct secrets_device *secrets_device_get(void);
void secrets_device_put(struct secrets_device *vs);
void secrets_kick(struct secrets_device *vs);
int secrets_read_begin(struct secrets_device *vs, u32 *generation);
bool secrets_read_retry(struct secrets_device *vs, u32 generation);
int secrets_settle(struct secrets_device *vs);

/* requests.c */
bool secrets_name_valid(const u8 *name);
int secrets_list(struct secrets_device *vs, struct secrets_entry **entries,
		 u32 *count, u64 *epoch);
int secrets_attach(struct secrets_device *vs, struct secrets_value *value,
		   u32 *needed);
int secrets_detach(struct secrets_device *vs, struct secrets_value *value);
int secrets_ack(struct secrets_device *vs, u64 epoch);
void *secrets_fetch(struct secrets_device *vs, const u8 *name, u32 room,
		    u32 *len, u64 *version);
void secrets_fetch_free(void *buffer, u32 room);
int secrets_requests_init(struct secrets_device *vs);
void secrets_answered(struct virtqueue *vq);
void secrets_give_up(struct secrets_device *vs);
void secrets_requests_stopped(struct secrets_device *vs);

/* values.c */
struct secrets_value *secrets_current(struct secrets_device *vs,
				      const u8 *name);
struct secrets_value *secrets_next(struct secrets_device *vs,
				   struct secrets_value *value);
void secrets_value_put(struct secrets_value *value);
void secrets_retire(struct secrets_value *value, int error);
void secrets_forget(struct secrets_value *value);
void secrets_reap(struct secrets_device *vs);
int secrets_refresh(struct secrets_device *vs);

/* To leave the loop early, put the value */
#define secrets_for_each(vs, value) \
	for (value = secrets_next(vs, NULL); value; \
	     value = secrets_next(vs, value))

/* secretsfs.c */
void secretsfs_zap(struct secrets_value *value);
void secretsfs_update(struct secrets_value *value);
int secretsfs_init(void);
void secretsfs_exit(void);

/* dev.c */
int secrets_dev_init(void);
void secrets_dev_exit(void);

#endif /* VIRTIO_SECRETS_DRIVER_H */
