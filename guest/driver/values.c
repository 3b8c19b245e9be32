// SPDX-License-Identifier: GPL-2.0-only
/*
 * Values: pages that the device fills, and which of them a name finds.
 */
#include <linux/gfp.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "driver.h"

/* A value can grow between the list that tells its length and ATTACH */
#define SECRETS_ATTACH_TRIES	4

static void secrets_value_release(struct kref *ref)
{
	struct secrets_value *value =
		container_of(ref, struct secrets_value, ref);
	struct secrets_device *vs = value->vs;
	unsigned long flags;
	bool dead;

	spin_lock_irqsave(&vs->lock, flags);
	list_move_tail(&value->node, &vs->released);
	dead = vs->dead;
	spin_unlock_irqrestore(&vs->lock, flags);
	if (dead)
		secrets_reap(vs);
	else
		secrets_kick(vs);
}

void secrets_value_put(struct secrets_value *value)
{
	kref_put(&value->ref, secrets_value_release);
}

/* The value after @value, or the first, with a reference; puts @value. */
struct secrets_value *secrets_next(struct secrets_device *vs,
				   struct secrets_value *value)
{
	struct secrets_value *next;

	spin_lock_irq(&vs->lock);
	next = value ?: list_entry(&vs->values, struct secrets_value, node);
	list_for_each_entry_continue(next, &vs->values, node)
		if (kref_get_unless_zero(&next->ref))
			goto found;
	next = NULL;
found:
	spin_unlock_irq(&vs->lock);
	if (value)
		secrets_value_put(value);
	return next;
}

/* The value that @name finds, with a reference, or NULL. */
struct secrets_value *secrets_current(struct secrets_device *vs,
				      const u8 *name)
{
	struct secrets_value *value;

	spin_lock_irq(&vs->lock);
	list_for_each_entry(value, &vs->values, node) {
		if (value->current_value &&
		    !memcmp(value->name, name, sizeof(value->name))) {
			kref_get(&value->ref);
			goto out;
		}
	}
	value = NULL;
out:
	spin_unlock_irq(&vs->lock);
	return value;
}

static void secrets_value_free(struct secrets_value *value)
{
	unsigned int i;

	for (i = 0; i < value->page_count; i++) {
		memzero_explicit(page_address(value->pages[i]), PAGE_SIZE);
		__free_page(value->pages[i]);
	}
	kfree(value);
}

/* Frees what has been released, but for pages that the device may write. */
void secrets_reap(struct secrets_device *vs)
{
	struct secrets_value *value, *next;
	LIST_HEAD(released);

	spin_lock_irq(&vs->lock);
	list_splice_init(&vs->released, &released);
	spin_unlock_irq(&vs->lock);
	list_for_each_entry_safe(value, next, &released, node) {
		if (value->attached)
			secrets_detach(vs, value);
		if (!value->attached) {
			list_del(&value->node);
			secrets_value_free(value);
		}
	}
	spin_lock_irq(&vs->lock);
	list_splice(&released, &vs->released);
	spin_unlock_irq(&vs->lock);
}

/* Ends every use of a value: reads fail with @error, mappings are gone. */
void secrets_retire(struct secrets_value *value, int error)
{
	WRITE_ONCE(value->error, error);
	secretsfs_zap(value);
	if (value->attached)
		secrets_detach(value->vs, value);
}

/* Its name does not find it any more. Files that opened it keep it. */
void secrets_forget(struct secrets_value *value)
{
	spin_lock_irq(&value->vs->lock);
	value->current_value = false;
	spin_unlock_irq(&value->vs->lock);
	secrets_value_put(value);
}

static void secrets_owner(struct secrets_value *value,
			  const struct secrets_entry *entry)
{
	value->uid = make_kuid(&init_user_ns, entry->uid);
	value->gid = make_kgid(&init_user_ns, entry->gid);
	value->mode = entry->mode;
}

/* A value with zeroed pages for @len bytes, to be attached. */
static struct secrets_value *secrets_value_new(struct secrets_device *vs,
					       const struct secrets_entry *entry,
					       u32 len)
{
	unsigned int count = DIV_ROUND_UP(len, PAGE_SIZE);
	struct secrets_value *value;

	if (count == 0 || count > SECRETS_MAX_PAGES)
		return ERR_PTR(-EFBIG);
	value = kzalloc(struct_size(value, pages, count), GFP_KERNEL);
	if (!value)
		return ERR_PTR(-ENOMEM);
	kref_init(&value->ref);
	value->vs = vs;
	value->ino = ++vs->last_ino;
	value->listed = true;
	memcpy(value->name, entry->name, sizeof(value->name));
	secrets_owner(value, entry);
	while (value->page_count < count) {
		struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);

		if (!page) {
			secrets_value_free(value);
			return ERR_PTR(-ENOMEM);
		}
		value->pages[value->page_count++] = page;
	}
	spin_lock_irq(&vs->lock);
	list_add_tail(&value->node, &vs->values);
	spin_unlock_irq(&vs->lock);
	return value;
}

static struct secrets_value *secrets_value_attach(struct secrets_device *vs,
						  const struct secrets_entry *entry)
{
	struct secrets_value *value;
	u32 len = entry->value_len;
	int tries, err;

	for (tries = 0; tries < SECRETS_ATTACH_TRIES; tries++) {
		value = secrets_value_new(vs, entry, len);
		if (IS_ERR(value))
			return value;
		err = secrets_attach(vs, value, &len);
		if (!err)
			return value;
		secrets_value_put(value);
		if (err != -EMSGSIZE)
			return ERR_PTR(err);
	}
	return ERR_PTR(-EAGAIN);
}

static const char *secrets_reason(int err)
{
	switch (err) {
	case -EACCES:
		return "the host's policy refuses it";
	case -EKEYREVOKED:
		return "it is revoked";
	case -EAGAIN:
		return "the host cannot get it now";
	case -ENOENT:
		return "it is not declared any more";
	case -ENOMEM:
		return "out of memory";
	default:
		return "the host's answer makes no sense";
	}
}

/* Attaches fresh pages and makes them what the secret's name finds. */
static int secrets_renew(struct secrets_device *vs, struct secrets_value *old,
			 const struct secrets_entry *entry)
{
	struct secrets_value *value = secrets_value_attach(vs, entry);
	int err;

	if (IS_ERR(value)) {
		err = PTR_ERR(value);
		/* This one secret is not to be had; those are no answers */
		if (err == -EBUSY || err == -ENODEV || err == -EIO ||
		    err == -ETIMEDOUT)
			return err;
		/* Of a secret that is revoked already there is no news */
		if (!old || old->error != err)
			dev_warn(&vs->vdev->dev,
				 "no value for the secret %s: %s\n",
				 entry->name, secrets_reason(err));
		return 0;
	}
	value->id = old ? old->id : ++vs->last_id;
	spin_lock_irq(&vs->lock);
	if (old)
		old->current_value = false;
	value->current_value = true;
	spin_unlock_irq(&vs->lock);
	/* The reference that being found held */
	if (old)
		secrets_value_put(old);
	return 0;
}

/* The host has put this into the pages of @value. */
static void secrets_refilled(struct secrets_value *value,
			     const struct secrets_entry *entry)
{
	spin_lock_irq(&value->vs->lock);
	value->version = entry->version;
	WRITE_ONCE(value->len, entry->value_len);
	secrets_owner(value, entry);
	ktime_get_real_ts64(&value->time);
	WRITE_ONCE(value->rewrites, value->rewrites + 1);
	spin_unlock_irq(&value->vs->lock);
	secretsfs_update(value);
}

/* After a restore all attached pages of a secret hold its value of then. */
static void secrets_rehydrated(struct secrets_device *vs,
			       const struct secrets_entry *entry)
{
	struct secrets_value *value;

	secrets_for_each(vs, value) {
		if (memcmp(value->name, entry->name, sizeof(value->name)))
			continue;
		value->listed = true;
		if (value->error || !value->attached)
			continue;
		/*
		 * Rotated since: how much of the pages the value of then takes
		 * is not known.
		 */
		if (value->rotated > vs->rehydrated ||
		    entry->value_len > value->page_count * PAGE_SIZE)
			secrets_retire(value, -ESTALE);
		else
			secrets_refilled(value, entry);
	}
}

/* Pages that a reset wiped are filled again, with what the secret is now. */
static int secrets_reattach(struct secrets_device *vs,
			    struct secrets_value *value,
			    const struct secrets_entry *entry)
{
	struct secrets_entry now = *entry;
	int err = secrets_attach(vs, value, &now.value_len);

	if (err)
		return err;
	now.version = value->version;
	secrets_refilled(value, &now);
	return 0;
}

/* Makes the current value of a secret what a new list says. */
static int secrets_reconcile(struct secrets_device *vs,
			     const struct secrets_entry *entry)
{
	struct secrets_value *value = secrets_current(vs, entry->name);
	int err = 0;

	if (value && value->listed) {
		dev_warn(&vs->vdev->dev, "the secret %s is declared twice\n",
			 entry->name);
		goto out;
	}
	if (value)
		value->listed = true;
	if (vs->rehydrated)
		secrets_rehydrated(vs, entry);
	if (value && !value->error && !value->attached) {
		err = secrets_reattach(vs, value, entry);
		if (!err)
			goto out;
		secrets_retire(value, -ESTALE);
	} else if (value && value->version == entry->version &&
		   value->error != -ESTALE) {
		goto out;
	}
	err = secrets_renew(vs, value, entry);
out:
	if (value)
		secrets_value_put(value);
	return err;
}

/* Lists the secrets, and attaches, refills or retires what has changed. */
int secrets_refresh(struct secrets_device *vs)
{
	struct secrets_entry *entries;
	struct secrets_value *value;
	u32 count, i;
	u64 epoch;
	int err;

	err = secrets_list(vs, &entries, &count, &epoch);
	if (err)
		return err;
	/*
	 * A list from after the news says nothing of pages that were filled in
	 * between. Later news is on its way.
	 */
	if (vs->told && epoch > vs->told) {
		kvfree(entries);
		return -EBUSY;
	}
	secrets_for_each(vs, value)
		value->listed = false;
	for (i = 0; i < count && !err; i++)
		if (entries[i].name[0])
			err = secrets_reconcile(vs, &entries[i]);
	kvfree(entries);
	if (err)
		return err;

	secrets_for_each(vs, value) {
		value->rotated = 0;
		if (value->listed)
			continue;
		/* A restore has wiped the pages of older versions, too */
		if (value->current_value || vs->rehydrated)
			secrets_retire(value, -EKEYREVOKED);
		if (value->current_value)
			secrets_forget(value);
	}
	vs->rehydrated = 0;
	spin_lock_irq(&vs->lock);
	vs->epoch = epoch;
	spin_unlock_irq(&vs->lock);
	if (!vs->told)
		vs->told = epoch;
	return 0;
}
