/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernels that the driver builds for (6.1 to 6.12).
 * The names are those of the newest.
 */
#ifndef _SECRETS_COMPAT_H
#define _SECRETS_COMPAT_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/splice.h>
#include <linux/version.h>
#include <linux/virtio_config.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_mod(struct vm_area_struct *vma, vm_flags_t set,
				vm_flags_t clear)
{
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define copy_splice_read generic_file_splice_read
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
static inline void simple_inode_init_ts(struct inode *inode)
{
	inode->i_ctime = current_time(inode);
	inode->i_mtime = inode->i_ctime;
	inode->i_atime = inode->i_ctime;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
struct virtqueue_info {
	const char *name;
	vq_callback_t *callback;
};

static inline int secrets_find_vqs(struct virtio_device *vdev,
				   struct virtqueue *queues[2],
				   struct virtqueue_info info[2])
{
	vq_callback_t *callbacks[] = { info[0].callback, info[1].callback };
	const char * const names[] = { info[0].name, info[1].name };

	return virtio_find_vqs(vdev, 2, queues, callbacks, names, NULL);
}
#else
static inline int secrets_find_vqs(struct virtio_device *vdev,
				   struct virtqueue *queues[2],
				   struct virtqueue_info info[2])
{
	return virtio_find_vqs(vdev, 2, queues, info, NULL);
}
#endif

#endif /* _SECRETS_COMPAT_H */
