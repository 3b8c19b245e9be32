// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio-secrets: secret values from the host, in pages that the host can
 * find, wipe and refill. This file: the device's life, and its news.
 */
#include <linux/errno.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/virtio_config.h>

#include "compat.h"
#include "driver.h"

/*
 * Seconds that a reader waits for news to be settled before it gives up. It
 * counts them one by one: the clock of a restored guest may jump.
 */
#define SECRETS_SETTLE_TIMEOUT	60

#define SECRETS_EVENTS		64U

/* The one device, whose reference probe holds; guarded by the mutex */
static struct secrets_device *secrets_device;
static DEFINE_MUTEX(secrets_device_lock);

struct secrets_device *secrets_device_get(void)
{
	struct secrets_device *vs;

	mutex_lock(&secrets_device_lock);
	vs = secrets_device;
	if (vs)
		kref_get(&vs->ref);
	mutex_unlock(&secrets_device_lock);
	return vs;
}

static void secrets_device_release(struct kref *ref)
{
	struct secrets_device *vs =
		container_of(ref, struct secrets_device, ref);

	kfree(vs->request);
	kfree(vs->response);
	kfree(vs->events);
	kfree(vs);
}

void secrets_device_put(struct secrets_device *vs)
{
	kref_put(&vs->ref, secrets_device_release);
}

/* Queues the worker. */
void secrets_kick(struct secrets_device *vs)
{
	unsigned long flags;

	spin_lock_irqsave(&vs->lock, flags);
	if (vs->listening)
		schedule_work(&vs->work);
	spin_unlock_irqrestore(&vs->lock, flags);
}

static void secrets_told(struct virtqueue *vq)
{
	secrets_kick(vq->vdev->priv);
}

static bool secrets_needs_reset(struct virtio_device *vdev)
{
	return vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

static void secrets_config_changed(struct virtio_device *vdev)
{
	struct secrets_device *vs = vdev->priv;

	if (secrets_needs_reset(vdev))
		secrets_give_up(vs);
	secrets_kick(vs);
}

static u32 secrets_generation(struct secrets_device *vs)
{
	const struct virtio_config_ops *config = vs->vdev->config;

	return config->generation ? config->generation(vs->vdev) : 0;
}

static bool secrets_settled(struct secrets_device *vs, u32 *generation)
{
	bool settled;

	spin_lock_irq(&vs->lock);
	settled = vs->settled || vs->broken || vs->dead;
	*generation = vs->generation;
	spin_unlock_irq(&vs->lock);
	return settled;
}

/*
 * The host wipes and refills pages without asking, and news of it takes time
 * to arrive. So readers copy first and then ask whether the device's
 * generation, which changes with everything, is the one they began with. If
 * not, they wait for the worker and begin again: they see lengths and bytes
 * of one moment, and never the zeros of a wiped page.
 */
int secrets_read_begin(struct secrets_device *vs, u32 *generation)
{
	long left = 0;
	int tries;

	if (fatal_signal_pending(current))
		return -EINTR;
	for (tries = 0; !left && tries < SECRETS_SETTLE_TIMEOUT; tries++)
		left = wait_event_killable_timeout(vs->wait,
						   secrets_settled(vs, generation),
						   HZ);
	if (left < 0)
		return left;
	if (left && !READ_ONCE(vs->broken))
		return 0;
	/* It may have lacked no more than memory */
	secrets_kick(vs);
	return -EIO;
}

bool secrets_read_retry(struct secrets_device *vs, u32 generation)
{
	bool retry = true;

	spin_lock_irq(&vs->lock);
	if (vs->settled) {
		vs->settled = secrets_generation(vs) == vs->generation;
		retry = !vs->settled || vs->generation != generation;
		if (!vs->settled && vs->listening)
			schedule_work(&vs->work);
	}
	spin_unlock_irq(&vs->lock);
	return retry;
}

/* Waits until all that the host has done by now is visible. */
int secrets_settle(struct secrets_device *vs)
{
	u32 generation;
	int err;

	do {
		err = secrets_read_begin(vs, &generation);
		if (err || READ_ONCE(vs->dead))
			return err;
	} while (secrets_read_retry(vs, generation));
	return 0;
}

static void secrets_event(struct secrets_device *vs,
			  const struct virtio_secrets_event *event)
{
	u32 type = le32_to_cpu(event->type);
	u64 epoch = le64_to_cpu(event->epoch);
	struct secrets_value *value;

	vs->told = max(vs->told, epoch);
	vs->relist = true;
	if (type == VIRTIO_SECRETS_E_REHYDRATED) {
		vs->rehydrated = epoch;
		return;
	}
	if (!secrets_name_valid(event->name) ||
	    (type != VIRTIO_SECRETS_E_ROTATED &&
	     type != VIRTIO_SECRETS_E_REVOKED)) {
		dev_warn_ratelimited(&vs->vdev->dev, "an unknown event\n");
		return;
	}
	secrets_for_each(vs, value) {
		if (memcmp(value->name, event->name, sizeof(value->name)))
			continue;
		if (type == VIRTIO_SECRETS_E_ROTATED)
			value->rotated = epoch;
		else if (!value->error)
			secrets_retire(value, -EKEYREVOKED);
	}
}

static int secrets_event_offer(struct secrets_device *vs,
			       struct virtio_secrets_event *event)
{
	struct scatterlist in;

	memset(event, 0, sizeof(*event));
	sg_init_one(&in, event, sizeof(*event));
	return virtqueue_add_inbuf(vs->eventq, &in, 1, event, GFP_KERNEL);
}

static void secrets_events(struct secrets_device *vs)
{
	struct virtio_secrets_event *event, news;
	u32 used;

	while ((event = virtqueue_get_buf(vs->eventq, &used))) {
		/* What has been checked must not change any more */
		memcpy(&news, event, sizeof(news));
		if (used >= sizeof(news))
			secrets_event(vs, &news);
		/* There is room: it was just taken from there */
		if (secrets_event_offer(vs, event))
			dev_err(&vs->vdev->dev, "an event buffer is lost\n");
		virtqueue_kick(vs->eventq);
		cond_resched();
	}
}

/* Acts on all news there is. -EBUSY: more will come, then it can be done. */
static int secrets_sync(struct secrets_device *vs)
{
	u32 generation;
	u64 epoch;
	int err;

	secrets_events(vs);
	if (vs->relist) {
		err = secrets_refresh(vs);
		if (err)
			return err;
		vs->relist = false;
	}

	/* In this order a change between the two costs readers a retry */
	generation = secrets_generation(vs);
	virtio_cread_le(vs->vdev, struct virtio_secrets_config, epoch, &epoch);
	/* The event of the last epoch is still on its way */
	if (epoch > vs->told)
		return -EBUSY;
	spin_lock_irq(&vs->lock);
	vs->generation = generation;
	vs->settled = true;
	vs->broken = false;
	epoch = vs->epoch;
	spin_unlock_irq(&vs->lock);
	wake_up_all(&vs->wait);

	if (vs->acked == epoch)
		return 0;
	vs->acked = epoch;
	return secrets_ack(vs, epoch);
}

static int secrets_find_queues(struct secrets_device *vs)
{
	struct virtqueue_info infos[] = {
		{ "requestq", secrets_answered },
		{ "eventq", secrets_told },
	};
	struct virtqueue *vqs[ARRAY_SIZE(infos)];
	int err;

	err = secrets_find_vqs(vs->vdev, vqs, infos);
	if (err)
		return err;
	mutex_lock(&vs->request_lock);
	vs->requestq = vqs[0];
	vs->failed = false;
	mutex_unlock(&vs->request_lock);
	vs->eventq = vqs[1];
	return 0;
}

/* Readers get -EIO, at once, until news could be acted on after all. */
static void secrets_broken(struct secrets_device *vs)
{
	spin_lock_irq(&vs->lock);
	vs->settled = false;
	vs->broken = true;
	spin_unlock_irq(&vs->lock);
	wake_up_all(&vs->wait);
}

/* Resets the device, which wipes all pages it has; ends older versions. */
static void secrets_stop(struct secrets_device *vs)
{
	struct secrets_value *value;

	spin_lock_irq(&vs->lock);
	vs->settled = false;
	vs->broken = false;
	spin_unlock_irq(&vs->lock);

	mutex_lock(&vs->request_lock);
	virtio_reset_device(vs->vdev);
	/* There are none where an earlier start has failed */
	if (vs->eventq)
		vs->vdev->config->del_vqs(vs->vdev);
	secrets_requests_stopped(vs);
	mutex_unlock(&vs->request_lock);
	vs->eventq = NULL;

	spin_lock_irq(&vs->lock);
	list_for_each_entry(value, &vs->values, node) {
		value->attached = false;
		value->handle = 0;
	}
	list_for_each_entry(value, &vs->released, node)
		value->attached = false;
	spin_unlock_irq(&vs->lock);
	secrets_for_each(vs, value)
		if (!value->current_value && !value->error)
			secrets_retire(value, -ESTALE);
	secrets_reap(vs);
}

/* The end of all values: readers get @error. */
static void secrets_end_values(struct secrets_device *vs, int error)
{
	struct secrets_value *value;

	secrets_for_each(vs, value) {
		secrets_retire(value, error);
		if (value->current_value)
			secrets_forget(value);
	}
}

/* Sets up the queues and attaches all secrets. */
static int secrets_start(struct secrets_device *vs)
{
	unsigned int i;
	int err;

	err = secrets_find_queues(vs);
	if (err)
		return err;
	for (i = 0; i < min(virtqueue_get_vring_size(vs->eventq),
			    SECRETS_EVENTS); i++) {
		err = secrets_event_offer(vs, &vs->events[i]);
		if (err)
			goto stop;
	}
	virtio_device_ready(vs->vdev);
	virtqueue_kick(vs->eventq);

	vs->told = 0;
	vs->acked = 0;
	vs->relist = true;
	vs->rehydrated = 0;
	err = secrets_sync(vs);
	if (!err || err == -EBUSY)
		return 0;
stop:
	secrets_stop(vs);
	return err;
}

/* What the core does between a reset and the driver, as at the first probe */
static int secrets_restart(struct secrets_device *vs)
{
	struct virtio_device *vdev = vs->vdev;
	int err;

	secrets_stop(vs);
	virtio_add_status(vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	virtio_add_status(vdev, VIRTIO_CONFIG_S_DRIVER);
	err = vdev->config->finalize_features(vdev);
	if (err)
		return err;
	virtio_add_status(vdev, VIRTIO_CONFIG_S_FEATURES_OK);
	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK))
		return -ENODEV;
	return secrets_start(vs);
}

static void secrets_work(struct work_struct *work)
{
	struct secrets_device *vs =
		container_of(work, struct secrets_device, work);
	struct device *dev = &vs->vdev->dev;
	int err;

	if (secrets_needs_reset(vs->vdev)) {
		dev_warn(dev, "the device needs a reset\n");
		err = secrets_restart(vs);
		if (err) {
			dev_err(dev, "cannot start it again: %d\n", err);
			secrets_end_values(vs, -EIO);
			secrets_broken(vs);
		}
	} else if (vs->eventq) {
		err = secrets_sync(vs);
		/* If it needs a reset, this runs once more */
		if (err && err != -EBUSY && !secrets_needs_reset(vs->vdev)) {
			dev_err_ratelimited(dev, "cannot act on news: %d\n",
					    err);
			secrets_broken(vs);
		}
	}
	secrets_reap(vs);
}

static int secrets_validate(struct virtio_device *vdev)
{
	/* Ranges are guest-physical addresses, translated by nobody */
	__virtio_clear_bit(vdev, VIRTIO_F_ACCESS_PLATFORM);
	return 0;
}

static void secrets_listen(struct secrets_device *vs)
{
	spin_lock_irq(&vs->lock);
	vs->listening = true;
	spin_unlock_irq(&vs->lock);
	secrets_kick(vs);
}

/* Ends the worker, then the device. */
static void secrets_shut(struct secrets_device *vs)
{
	spin_lock_irq(&vs->lock);
	vs->listening = false;
	spin_unlock_irq(&vs->lock);
	secrets_give_up(vs);
	cancel_work_sync(&vs->work);
	secrets_stop(vs);
}

/* All uses of the device end here; files that are open stay, without values. */
static void secrets_gone(struct secrets_device *vs)
{
	mutex_lock(&secrets_device_lock);
	secrets_device = NULL;
	mutex_unlock(&secrets_device_lock);

	secrets_end_values(vs, -ENODEV);
	spin_lock_irq(&vs->lock);
	vs->dead = true;
	spin_unlock_irq(&vs->lock);
	wake_up_all(&vs->wait);
	secrets_reap(vs);
	secrets_device_put(vs);
}

static int secrets_probe(struct virtio_device *vdev)
{
	struct secrets_device *vs;
	int err;

	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1))
		return -ENODEV;
	vs = kzalloc(sizeof(*vs), GFP_KERNEL);
	if (!vs)
		return -ENOMEM;
	kref_init(&vs->ref);
	vs->vdev = vdev;
	mutex_init(&vs->request_lock);
	init_completion(&vs->answered);
	INIT_WORK(&vs->work, secrets_work);
	spin_lock_init(&vs->lock);
	INIT_LIST_HEAD(&vs->values);
	INIT_LIST_HEAD(&vs->released);
	init_waitqueue_head(&vs->wait);
	mutex_init(&vs->sb_lock);
	/* 1 is the folder's */
	vs->last_ino = 1;
	/* Places 0 and 1 in the folder are those of . and .. */
	vs->last_id = 1;
	vdev->priv = vs;

	vs->events = kcalloc(SECRETS_EVENTS, sizeof(*vs->events), GFP_KERNEL);
	err = vs->events ? secrets_requests_init(vs) : -ENOMEM;
	if (err) {
		secrets_device_put(vs);
		return err;
	}

	/* One file system, one /dev/secrets: a second device has no place */
	mutex_lock(&secrets_device_lock);
	if (secrets_device)
		err = -EBUSY;
	else
		secrets_device = vs;
	mutex_unlock(&secrets_device_lock);
	if (err) {
		secrets_device_put(vs);
		return err;
	}

	err = secrets_start(vs);
	if (err) {
		dev_err(&vdev->dev, "cannot start: %d\n", err);
		secrets_gone(vs);
		return err;
	}
	secrets_listen(vs);
	return 0;
}

static void secrets_remove(struct virtio_device *vdev)
{
	struct secrets_device *vs = vdev->priv;

	secrets_shut(vs);
	secrets_gone(vs);
}

#ifdef CONFIG_PM_SLEEP
/* The device's reset wipes the pages: no image of a suspended guest has values. */
static int secrets_freeze(struct virtio_device *vdev)
{
	struct secrets_device *vs = vdev->priv;

	secrets_shut(vs);
	return 0;
}

static int secrets_restore(struct virtio_device *vdev)
{
	struct secrets_device *vs = vdev->priv;
	int err = secrets_start(vs);

	if (err) {
		secrets_end_values(vs, -EIO);
		secrets_broken(vs);
	} else {
		secrets_listen(vs);
	}
	return err;
}
#endif

static const struct virtio_device_id secrets_ids[] = {
	{ VIRTIO_ID_SECRETS, VIRTIO_DEV_ANY_ID },
	{ }
};
MODULE_DEVICE_TABLE(virtio, secrets_ids);

static struct virtio_driver secrets_driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
	.id_table = secrets_ids,
	.validate = secrets_validate,
	.probe = secrets_probe,
	.remove = secrets_remove,
	.config_changed = secrets_config_changed,
#ifdef CONFIG_PM_SLEEP
	.freeze = secrets_freeze,
	.restore = secrets_restore,
#endif
};

static int __init secrets_init(void)
{
	int err;

	err = secretsfs_init();
	if (err)
		return err;
	err = secrets_dev_init();
	if (err)
		goto fs;
	err = register_virtio_driver(&secrets_driver);
	if (err)
		goto dev;
	return 0;
dev:
	secrets_dev_exit();
fs:
	secretsfs_exit();
	return err;
}
module_init(secrets_init);

static void __exit secrets_exit(void)
{
	unregister_virtio_driver(&secrets_driver);
	secrets_dev_exit();
	secretsfs_exit();
}
module_exit(secrets_exit);

MODULE_DESCRIPTION("Virtio secrets driver");
MODULE_LICENSE("GPL");
