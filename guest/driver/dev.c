// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/secrets: versions, the epoch, and values fetched once, as secrets.h
 * tells.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "driver.h"

struct secrets_file {
	struct secrets_device *vs;
	/* The epoch that SECRETS_IOC_EPOCH has last returned */
	u64 seen;
};

static int secrets_open(struct inode *inode, struct file *file)
{
	struct secrets_file *sf = kzalloc(sizeof(*sf), GFP_KERNEL);

	if (!sf)
		return -ENOMEM;
	sf->vs = secrets_device_get();
	if (!sf->vs) {
		kfree(sf);
		return -ENODEV;
	}
	file->private_data = sf;
	return 0;
}

static int secrets_release(struct inode *inode, struct file *file)
{
	struct secrets_file *sf = file->private_data;

	secrets_device_put(sf->vs);
	kfree(sf);
	return 0;
}

/* Copies at most @room entries; counts all. */
static u32 secrets_snapshot(struct secrets_device *vs,
			    struct secrets_entry *entries, u32 room)
{
	struct secrets_value *value;
	u32 total = 0;

	spin_lock_irq(&vs->lock);
	list_for_each_entry(value, &vs->values, node) {
		struct secrets_entry *entry = entries + total;

		if (!value->current_value || value->error)
			continue;
		if (total++ >= room)
			continue;
		memcpy(entry->name, value->name, sizeof(entry->name));
		entry->version = value->version;
		entry->value_len = value->len;
		entry->uid = from_kuid_munged(current_user_ns(), value->uid);
		entry->gid = from_kgid_munged(current_user_ns(), value->gid);
		entry->mode = value->mode;
	}
	spin_unlock_irq(&vs->lock);
	return total;
}

static long secrets_ioctl_list(struct secrets_device *vs, void __user *arg)
{
	struct secrets_entry *entries;
	struct secrets_list list;
	long err;

	if (copy_from_user(&list, arg, sizeof(list)))
		return -EFAULT;
	err = secrets_settle(vs);
	if (err)
		return err;
	list.count = min_t(u32, list.count, SECRETS_MAX_COUNT);
	entries = kvcalloc(max(list.count, 1U), sizeof(*entries), GFP_KERNEL);
	if (!entries)
		return -ENOMEM;
	list.total = secrets_snapshot(vs, entries, list.count);
	list.count = min(list.count, list.total);
	if (copy_to_user(u64_to_user_ptr(list.entries), entries,
			 list.count * sizeof(*entries)) ||
	    copy_to_user(arg, &list, sizeof(list)))
		err = -EFAULT;
	kvfree(entries);
	return err;
}

static long secrets_ioctl_get(struct secrets_device *vs, void __user *arg)
{
	struct secrets_get get;
	void *value;
	u32 room, buffer_len;
	long err = 0;

	if (copy_from_user(&get, arg, sizeof(get)))
		return -EFAULT;
	if (get.reserved || !secrets_name_valid(get.name))
		return -EINVAL;
	/* No value is empty, and a buffer must not be */
	room = clamp_t(u32, get.len, 1, SECRETS_MAX_LEN);
	buffer_len = get.len;
	value = secrets_fetch(vs, get.name, room, &get.len, &get.version);
	if (IS_ERR(value)) {
		err = PTR_ERR(value);
	} else {
		if (get.len > buffer_len)
			err = -EMSGSIZE;
		else if (copy_to_user(u64_to_user_ptr(get.buffer), value,
				      get.len))
			err = -EFAULT;
		secrets_fetch_free(value, room);
	}
	if ((!err || err == -EMSGSIZE) && copy_to_user(arg, &get, sizeof(get)))
		err = -EFAULT;
	return err;
}

static long secrets_ioctl_epoch(struct secrets_file *sf, u64 __user *arg)
{
	struct secrets_device *vs = sf->vs;
	u64 epoch;

	spin_lock_irq(&vs->lock);
	epoch = vs->epoch;
	sf->seen = epoch;
	spin_unlock_irq(&vs->lock);
	return copy_to_user(arg, &epoch, sizeof(epoch)) ? -EFAULT : 0;
}

static long secrets_ioctl(struct file *file, unsigned int cmd,
			  unsigned long arg)
{
	struct secrets_file *sf = file->private_data;
	void __user *user = (void __user *)arg;

	if (READ_ONCE(sf->vs->dead))
		return -ENODEV;
	switch (cmd) {
	case SECRETS_IOC_LIST:
		return secrets_ioctl_list(sf->vs, user);
	case SECRETS_IOC_GET:
		return secrets_ioctl_get(sf->vs, user);
	case SECRETS_IOC_EPOCH:
		return secrets_ioctl_epoch(sf, user);
	default:
		return -ENOTTY;
	}
}

static __poll_t secrets_poll(struct file *file, poll_table *wait)
{
	struct secrets_file *sf = file->private_data;
	struct secrets_device *vs = sf->vs;
	__poll_t mask = 0;

	poll_wait(file, &vs->wait, wait);
	spin_lock_irq(&vs->lock);
	if (vs->dead)
		mask = EPOLLERR | EPOLLHUP;
	else if (vs->broken)
		mask = EPOLLERR;
	else if (vs->settled && vs->epoch != sf->seen)
		mask = EPOLLIN | EPOLLRDNORM;
	spin_unlock_irq(&vs->lock);
	return mask;
}

static const struct file_operations secrets_file_operations = {
	.owner = THIS_MODULE,
	.open = secrets_open,
	.release = secrets_release,
	.unlocked_ioctl = secrets_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.poll = secrets_poll,
};

static struct miscdevice secrets_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "secrets",
	.mode = 0600,
	.fops = &secrets_file_operations,
};

int __init secrets_dev_init(void)
{
	return misc_register(&secrets_misc);
}

void secrets_dev_exit(void)
{
	misc_deregister(&secrets_misc);
}
