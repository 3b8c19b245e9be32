// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/secrets: what secrets.h promises.
 */
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

struct secrets_file {
	struct virtio_secrets *vs;
	/* The epoch that SECRETS_IOC_EPOCH last returned */
	u64 seen_epoch;
};

static int secrets_dev_open(struct inode *inode, struct file *file)
{
	struct miscdevice *misc = file->private_data;
	struct virtio_secrets *vs =
		container_of(misc, struct virtio_secrets, misc);
	struct secrets_file *opened = kzalloc(sizeof(*opened), GFP_KERNEL);

	if (!opened)
		return -ENOMEM;
	kref_get(&vs->refs);
	opened->vs = vs;
	opened->seen_epoch = READ_ONCE(vs->epoch);
	file->private_data = opened;
	return stream_open(inode, file);
}

static int secrets_dev_release(struct inode *inode, struct file *file)
{
	struct secrets_file *opened = file->private_data;

	virtio_secrets_put(opened->vs);
	kfree(opened);
	return 0;
}

static long ioctl_list(struct virtio_secrets *vs, void __user *argument)
{
	struct secrets_entry __user *to;
	struct secret_value *value;
	struct secrets_list list;
	u32 room;
	u64 ino;

	if (copy_from_user(&list, argument, sizeof(list)))
		return -EFAULT;
	to = u64_to_user_ptr(list.entries);
	room = list.count;
	list.count = 0;
	list.total = 0;
	for (ino = 0; (value = secrets_next(vs, ino)); ino++) {
		struct secrets_entry entry = {
			.version = value->version,
			.value_len = value->len,
			.uid = from_kuid_munged(&init_user_ns, value->uid),
			.gid = from_kgid_munged(&init_user_ns, value->gid),
			.mode = value->mode,
		};

		memcpy(entry.name, value->name, sizeof(entry.name));
		ino = value->ino;
		secret_value_put(value);
		list.total++;
		if (list.count == room)
			continue;
		if (copy_to_user(&to[list.count], &entry, sizeof(entry)))
			return -EFAULT;
		list.count++;
	}
	if (copy_to_user(argument, &list, sizeof(list)))
		return -EFAULT;
	return 0;
}

static long ioctl_get(struct virtio_secrets *vs, void __user *argument)
{
	struct secret_pages pages;
	struct secrets_get get;
	struct iov_iter to;
	struct iovec iov;
	u32 len;
	int ret;

	if (copy_from_user(&get, argument, sizeof(get)))
		return -EFAULT;
	if (get.reserved || !secrets_name_is_valid(get.name))
		return -EINVAL;
	len = min(get.len, vs->max_value_len);
	iov.iov_base = u64_to_user_ptr(get.buffer);
	iov.iov_len = len;

	ret = secret_pages_alloc(vs, &pages, len);
	if (ret)
		return ret;
	ret = secrets_request_get(vs, get.name, &pages, &get.len, &get.version);
	/* The pages are whole, so they may hold more than was asked for */
	if (!ret && get.len > len)
		ret = -EMSGSIZE;
	if (!ret) {
		iov_iter_init(&to, READ, &iov, 1, len);
		if (secret_pages_copy(&pages, 0, get.len, &to) < get.len)
			ret = -EFAULT;
	}
	secret_pages_free(&pages);

	if (ret && ret != -EMSGSIZE)
		return ret == -ENODATA ? -EAGAIN : ret;
	if (copy_to_user(argument, &get, sizeof(get)))
		return -EFAULT;
	return ret;
}

static long secrets_dev_ioctl(struct file *file, unsigned int command,
			      unsigned long argument)
{
	struct secrets_file *opened = file->private_data;
	void __user *user = (void __user *)argument;

	switch (command) {
	case SECRETS_IOC_LIST:
		return ioctl_list(opened->vs, user);
	case SECRETS_IOC_GET:
		return ioctl_get(opened->vs, user);
	case SECRETS_IOC_EPOCH:
		opened->seen_epoch = READ_ONCE(opened->vs->epoch);
		return put_user(opened->seen_epoch, (u64 __user *)user);
	default:
		return -ENOTTY;
	}
}

static __poll_t secrets_dev_poll(struct file *file, poll_table *wait)
{
	struct secrets_file *opened = file->private_data;
	struct virtio_secrets *vs = opened->vs;
	__poll_t events = 0;

	poll_wait(file, &vs->epoch_wait, wait);
	if (READ_ONCE(vs->epoch) != opened->seen_epoch)
		events |= EPOLLIN | EPOLLRDNORM;
	if (READ_ONCE(vs->stopped))
		events |= EPOLLERR | EPOLLHUP;
	return events;
}

static const struct file_operations secrets_dev_ops = {
	.owner		= THIS_MODULE,
	.open		= secrets_dev_open,
	.release	= secrets_dev_release,
	.unlocked_ioctl	= secrets_dev_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.poll		= secrets_dev_poll,
};

int secrets_dev_register(struct virtio_secrets *vs)
{
	vs->misc.minor = MISC_DYNAMIC_MINOR;
	vs->misc.name = "secrets";
	vs->misc.mode = 0600;
	vs->misc.fops = &secrets_dev_ops;
	vs->misc.parent = &vs->vdev->dev;
	return misc_register(&vs->misc);
}
