// SPDX-License-Identifier: GPL-2.0
/*
 * The virtio device: probe and remove, queues, events and the epoch.
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "compat.h"
#include "internal.h"

/* How long a reader waits for an event that announces a new epoch */
#define SETTLE_TIMEOUT		(10 * HZ)

/* How soon a request is repeated that the device was too frozen to answer */
#define FROZEN_RETRY		(HZ / 10)

#define EVENT_BUFFERS		16

static struct workqueue_struct *secrets_wq;

/* The one device that secretsfs and /dev/secrets show */
static DEFINE_MUTEX(the_device_lock);
static struct virtio_secrets *the_device;

struct virtio_secrets *virtio_secrets_get(void)
{
	struct virtio_secrets *vs;

	mutex_lock(&the_device_lock);
	vs = the_device;
	if (vs)
		kref_get(&vs->refs);
	mutex_unlock(&the_device_lock);
	return vs;
}

static void virtio_secrets_release(struct kref *refs)
{
	struct virtio_secrets *vs =
		container_of(refs, struct virtio_secrets, refs);

	kfree_sensitive(vs->response);
	kfree(vs->request);
	kfree(vs->events);
	kfree(vs);
}

void virtio_secrets_put(struct virtio_secrets *vs)
{
	kref_put(&vs->refs, virtio_secrets_release);
}

/*
 * The low half of the device's epoch now: one access to the configuration
 * space, where the whole would take four.
 */
u32 virtio_secrets_epoch(struct virtio_secrets *vs)
{
	__le32 epoch = cpu_to_le32(READ_ONCE(vs->epoch));

	spin_lock(&vs->vdev_lock);
	if (vs->vdev && !vs->stopped)
		vs->vdev->config->get(vs->vdev,
				      offsetof(struct virtio_secrets_config,
					       epoch),
				      &epoch, sizeof(epoch));
	spin_unlock(&vs->vdev_lock);
	return le32_to_cpu(epoch);
}

static bool has_reached(struct virtio_secrets *vs, u32 epoch)
{
	return (s32)((u32)READ_ONCE(vs->epoch) - epoch) >= 0 ||
	       READ_ONCE(vs->stopped);
}

/*
 * Waits until everything has been done that the device's present epoch asks
 * for, and returns that epoch: while it stays, no value changes.
 */
int virtio_secrets_settle(struct virtio_secrets *vs, u32 *epoch)
{
	long ret;

	*epoch = virtio_secrets_epoch(vs);
	ret = wait_event_killable_timeout(vs->epoch_wait,
					  has_reached(vs, *epoch),
					  SETTLE_TIMEOUT);
	if (ret < 0)
		return ret;
	return ret ? 0 : -ETIMEDOUT;
}

static void add_event_buffer(struct virtio_secrets *vs,
			     struct virtio_secrets_event *event)
{
	struct scatterlist sg;

	sg_init_one(&sg, event, sizeof(*event));
	virtqueue_add_inbuf(vs->eventq, &sg, 1, event, GFP_KERNEL);
}

static void take_event(struct virtio_secrets *vs,
		       const struct virtio_secrets_event *event)
{
	u64 epoch = le64_to_cpu(event->epoch);

	switch (le32_to_cpu(event->type)) {
	case VIRTIO_SECRETS_E_ROTATED:
		vs->rotated = true;
		break;
	case VIRTIO_SECRETS_E_REVOKED:
		if (!secrets_name_is_valid(event->name))
			return;
		secrets_revoke(vs, event->name);
		break;
	case VIRTIO_SECRETS_E_REHYDRATED:
		vs->rehydrated = epoch;
		break;
	default:
		return;
	}
	vs->told_epoch = max(vs->told_epoch, epoch);
}

static void secrets_event_work(struct work_struct *work)
{
	struct virtio_secrets *vs = container_of(to_delayed_work(work),
						 struct virtio_secrets,
						 event_work);
	struct virtio_secrets_event *event;
	unsigned int len;
	int ret;

	while (!READ_ONCE(vs->stopped) &&
	       (event = virtqueue_get_buf(vs->eventq, &len))) {
		if (len >= sizeof(*event))
			take_event(vs, event);
		add_event_buffer(vs, event);
	}
	if (READ_ONCE(vs->stopped))
		return;
	virtqueue_kick(vs->eventq);

	if (vs->rotated || vs->rehydrated) {
		ret = secrets_refresh(vs, vs->rehydrated);
		if (ret == -EAGAIN)
			mod_delayed_work(vs->wq, &vs->event_work, FROZEN_RETRY);
		else if (ret)
			dev_err(&vs->vdev->dev,
				"the list of secrets cannot be read: %pe\n",
				ERR_PTR(ret));
		if (ret)
			return;
		vs->rotated = false;
		vs->rehydrated = 0;
	}
	if (vs->told_epoch > vs->epoch) {
		WRITE_ONCE(vs->epoch, vs->told_epoch);
		wake_up_all(&vs->epoch_wait);
		secrets_request_ack(vs, vs->told_epoch);
	}
}

static void secrets_answered(struct virtqueue *vq)
{
	struct virtio_secrets *vs = vq->vdev->priv;

	wake_up(&vs->answer_wait);
}

static void secrets_told(struct virtqueue *vq)
{
	struct virtio_secrets *vs = vq->vdev->priv;

	mod_delayed_work(vs->wq, &vs->event_work, 0);
}

/* The device uses no buffer any more; whoever waits for one gives up */
static void mark_stopped(struct virtio_secrets *vs)
{
	WRITE_ONCE(vs->stopped, true);
	wake_up_all(&vs->answer_wait);
	wake_up_all(&vs->epoch_wait);
}

static void secrets_config_changed(struct virtio_device *vdev)
{
	struct virtio_secrets *vs = vdev->priv;

	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET))
		return;
	dev_err(&vdev->dev,
		"the device has failed; bind the driver again to reset it\n");
	mark_stopped(vs);
}

static int find_queues(struct virtio_secrets *vs)
{
	struct virtqueue_info info[] = {
		{ "requestq", secrets_answered },
		{ "eventq", secrets_told },
	};
	struct virtqueue *queues[2];
	int ret;

	ret = secrets_find_vqs(vs->vdev, queues, info);
	if (ret)
		return ret;
	vs->requestq = queues[0];
	vs->eventq = queues[1];
	return 0;
}

/* Makes the device ready and attaches every secret */
static int start(struct virtio_secrets *vs)
{
	struct virtio_device *vdev = vs->vdev;
	unsigned int i, buffers;
	u64 epoch;
	int ret;

	ret = find_queues(vs);
	if (ret)
		return ret;
	/* A GET takes two descriptors besides those of the value */
	ret = -EINVAL;
	if (virtqueue_get_vring_size(vs->requestq) < 3)
		goto err_queues;
	vs->max_chunks = min_t(unsigned int, SECRETS_MAX_CHUNKS,
			       virtqueue_get_vring_size(vs->requestq) - 2);
	virtio_cread_le(vdev, struct virtio_secrets_config, max_value_len,
			&vs->max_value_len);
	vs->max_value_len = min(vs->max_value_len, SECRETS_MAX_VALUE);
	virtio_cread_le(vdev, struct virtio_secrets_config, epoch, &epoch);
	vs->rehydrated = 0;
	vs->rotated = false;
	vs->told_epoch = epoch;
	WRITE_ONCE(vs->epoch, epoch);
	vs->stopped = false;

	virtio_device_ready(vdev);
	buffers = min_t(unsigned int, EVENT_BUFFERS,
			virtqueue_get_vring_size(vs->eventq));
	for (i = 0; i < buffers; i++)
		add_event_buffer(vs, &vs->events[i]);
	virtqueue_kick(vs->eventq);

	ret = secrets_refresh(vs, 0);
	if (ret == -EAGAIN) {
		vs->rotated = true;
		mod_delayed_work(vs->wq, &vs->event_work, FROZEN_RETRY);
		ret = 0;
	}
	if (ret)
		goto err_reset;
	return 0;

err_reset:
	virtio_reset_device(vdev);
	mark_stopped(vs);
	cancel_delayed_work_sync(&vs->event_work);
	secrets_end_all(vs, ret);
err_queues:
	vdev->config->del_vqs(vdev);
	return ret;
}

/* Resets the device, which thereby forgets all handles; every read gives @error */
static void stop(struct virtio_secrets *vs, int error)
{
	virtio_reset_device(vs->vdev);
	mark_stopped(vs);
	cancel_delayed_work_sync(&vs->event_work);
	secrets_end_all(vs, error);
	/* Whoever was waiting for an answer has left when the lock is free */
	mutex_lock(&vs->request_lock);
	vs->vdev->config->del_vqs(vs->vdev);
	mutex_unlock(&vs->request_lock);
}

static int secrets_probe(struct virtio_device *vdev)
{
	struct virtio_secrets *vs;
	int ret;

	vs = kzalloc(sizeof(*vs), GFP_KERNEL);
	if (!vs)
		return -ENOMEM;
	kref_init(&vs->refs);
	vs->wq = secrets_wq;
	vs->vdev = vdev;
	vs->stopped = true;
	vs->next_ino = 2;
	spin_lock_init(&vs->vdev_lock);
	spin_lock_init(&vs->inode_lock);
	mutex_init(&vs->request_lock);
	mutex_init(&vs->lock);
	init_waitqueue_head(&vs->answer_wait);
	init_waitqueue_head(&vs->epoch_wait);
	INIT_LIST_HEAD(&vs->values);
	init_llist_head(&vs->released);
	INIT_DELAYED_WORK(&vs->event_work, secrets_event_work);
	INIT_WORK(&vs->release_work, secrets_release_work);
	vdev->priv = vs;

	ret = -ENOMEM;
	vs->request = kmalloc(SECRETS_REQUEST_SIZE, GFP_KERNEL);
	vs->response = kmalloc(SECRETS_RESPONSE_SIZE, GFP_KERNEL);
	vs->events = kcalloc(EVENT_BUFFERS, sizeof(*vs->events), GFP_KERNEL);
	if (!vs->request || !vs->response || !vs->events)
		goto err_put;

	mutex_lock(&the_device_lock);
	ret = -EBUSY;
	if (the_device)
		goto err_unlock;
	ret = start(vs);
	if (ret)
		goto err_unlock;
	ret = secrets_dev_register(vs);
	if (ret)
		goto err_stop;
	the_device = vs;
	mutex_unlock(&the_device_lock);
	return 0;

err_stop:
	stop(vs, -ENODEV);
err_unlock:
	mutex_unlock(&the_device_lock);
err_put:
	vs->vdev = NULL;
	virtio_secrets_put(vs);
	return dev_err_probe(&vdev->dev, ret, "no secret can be delivered\n");
}

static void secrets_remove(struct virtio_device *vdev)
{
	struct virtio_secrets *vs = vdev->priv;

	misc_deregister(&vs->misc);
	mutex_lock(&the_device_lock);
	the_device = NULL;
	mutex_unlock(&the_device_lock);

	stop(vs, -ENODEV);
	spin_lock(&vs->vdev_lock);
	vs->vdev = NULL;
	spin_unlock(&vs->vdev_lock);
	virtio_secrets_put(vs);
}

static int secrets_freeze(struct virtio_device *vdev)
{
	stop(vdev->priv, -ESTALE);
	return 0;
}

static int secrets_restore(struct virtio_device *vdev)
{
	return start(vdev->priv);
}

static const struct virtio_device_id secrets_ids[] = {
	{ VIRTIO_ID_SECRETS, VIRTIO_DEV_ANY_ID },
	{ 0 },
};

static struct virtio_driver virtio_secrets_driver = {
	.driver.name	= KBUILD_MODNAME,
	.driver.owner	= THIS_MODULE,
	.id_table	= secrets_ids,
	.probe		= secrets_probe,
	.remove		= secrets_remove,
	.config_changed	= secrets_config_changed,
	.freeze		= pm_sleep_ptr(secrets_freeze),
	.restore	= pm_sleep_ptr(secrets_restore),
};

static int __init secrets_init(void)
{
	int ret;

	/* Ordered: a value's pages are not freed while events are acted on */
	secrets_wq = alloc_ordered_workqueue("virtio_secrets", 0);
	if (!secrets_wq)
		return -ENOMEM;
	ret = secretsfs_register();
	if (ret)
		goto err_wq;
	ret = register_virtio_driver(&virtio_secrets_driver);
	if (ret)
		goto err_fs;
	return 0;

err_fs:
	secretsfs_unregister();
err_wq:
	destroy_workqueue(secrets_wq);
	return ret;
}

static void __exit secrets_exit(void)
{
	unregister_virtio_driver(&virtio_secrets_driver);
	secretsfs_unregister();
	/* Runs what is queued: the last users of values have left them to it */
	destroy_workqueue(secrets_wq);
}

module_init(secrets_init);
module_exit(secrets_exit);

MODULE_DEVICE_TABLE(virtio, secrets_ids);
MODULE_DESCRIPTION("Virtio secrets driver");
MODULE_LICENSE("GPL");
