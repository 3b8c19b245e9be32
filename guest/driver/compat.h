/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between Linux 6.1 and 6.12, in the newer one's words where it can be. */
#ifndef VIRTIO_SECRETS_COMPAT_H
#define VIRTIO_SECRETS_COMPAT_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/version.h>
#include <linux/virtio_config.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_mod(struct vm_area_struct *vma, vm_flags_t set,
				vm_flags_t clear)
{
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
#define mnt_idmap user_namespace
#endif

static inline void secretsfs_fillattr(struct mnt_idmap *idmap, u32 request_mask,
				      struct inode *inode, struct kstat *stat)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	generic_fillattr(idmap, inode, stat);
#else
	generic_fillattr(idmap, request_mask, inode, stat);
#endif
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define copy_splice_read generic_file_splice_read
#endif

static inline void secretsfs_set_times(struct inode *inode,
				       struct timespec64 time)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	inode->i_atime = time;
	inode->i_mtime = time;
	inode->i_ctime = time;
#else
	inode_set_atime_to_ts(inode, time);
	inode_set_mtime_to_ts(inode, time);
	inode_set_ctime_to_ts(inode, time);
#endif
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
struct virtqueue_info {
	const char *name;
	vq_callback_t *callback;
};

static inline int secrets_find_vqs(struct virtio_device *vdev,
				   struct virtqueue *vqs[],
				   const struct virtqueue_info infos[2])
{
	vq_callback_t *callbacks[] = { infos[0].callback, infos[1].callback };
	const char * const names[] = { infos[0].name, infos[1].name };

	return virtio_find_vqs(vdev, 2, vqs, callbacks, names, NULL);
}
#else
static inline int secrets_find_vqs(struct virtio_device *vdev,
				   struct virtqueue *vqs[],
				   struct virtqueue_info infos[2])
{
	return virtio_find_vqs(vdev, 2, vqs, infos, NULL);
}
#endif

#endif /* VIRTIO_SECRETS_COMPAT_H */
