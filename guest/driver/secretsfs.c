// SPDX-License-Identifier: GPL-2.0-only
/*
 * secretsfs: a folder with a file for each secret, read straight from the
 * pages that the device fills, never through the page cache.
 *
 * An inode is one value, not one secret: an open file keeps what it opened,
 * while the name already finds the next version. Only a restore of the guest
 * changes a value in place. A file that was open then has to be read again from
 * its start (ESTALE), so that nobody gets a part of one value and a part of
 * another. A revoked secret gives EKEYREVOKED; its mappings, SIGBUS.
 */
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/string.h>
#include <linux/uio.h>

#include "compat.h"
#include "driver.h"

#define SECRETSFS_MAGIC		0x53454352	/* "SECR" */
#define SECRETSFS_ROOT_INO	1

/* The inode of a value, if there is one; the caller holds vs->sb_lock. */
static struct inode *secretsfs_inode(struct secrets_value *value)
{
	struct secrets_device *vs = value->vs;

	lockdep_assert_held(&vs->sb_lock);
	return vs->sb ? ilookup(vs->sb, value->ino) : NULL;
}

/*
 * Removes all mappings of a value whose error is set. A fault that has not
 * seen the error holds the lock, so what it maps is removed too.
 */
void secretsfs_zap(struct secrets_value *value)
{
	struct secrets_device *vs = value->vs;
	struct inode *inode;

	mutex_lock(&vs->sb_lock);
	inode = secretsfs_inode(value);
	if (inode) {
		filemap_invalidate_lock(inode->i_mapping);
		unmap_mapping_range(inode->i_mapping, 0, 0, 1);
		filemap_invalidate_unlock(inode->i_mapping);
		iput(inode);
	}
	mutex_unlock(&vs->sb_lock);
}

static void secretsfs_fill_inode(struct inode *inode,
				 struct secrets_value *value)
{
	spin_lock_irq(&value->vs->lock);
	inode->i_mode = S_IFREG | value->mode;
	inode->i_uid = value->uid;
	inode->i_gid = value->gid;
	secretsfs_set_times(inode, value->time);
	i_size_write(inode, value->len);
	spin_unlock_irq(&value->vs->lock);
}

/* Shows what has changed in place, the bytes in mappings aside. */
void secretsfs_update(struct secrets_value *value)
{
	struct secrets_device *vs = value->vs;
	struct inode *inode;

	mutex_lock(&vs->sb_lock);
	inode = secretsfs_inode(value);
	if (inode) {
		inode_lock(inode);
		secretsfs_fill_inode(inode, value);
		inode_unlock(inode);
		/* Pages past a new end */
		unmap_mapping_range(inode->i_mapping, 0, 0, 1);
		iput(inode);
	}
	mutex_unlock(&vs->sb_lock);
}

static void *secretsfs_rewrites(struct secrets_value *value)
{
	return (void *)(uintptr_t)READ_ONCE(value->rewrites);
}

static int secretsfs_open(struct inode *inode, struct file *file)
{
	struct secrets_value *value = inode->i_private;
	int err = READ_ONCE(value->error);

	file->private_data = secretsfs_rewrites(value);
	/* Another value came after the name was looked up: look it up again */
	return err == -ESTALE ? -EOPENSTALE : err;
}

static ssize_t secretsfs_copy(struct secrets_value *value, loff_t pos,
			      struct iov_iter *to)
{
	loff_t len = READ_ONCE(value->len);
	ssize_t copied = 0;

	while (pos < len && iov_iter_count(to)) {
		size_t offset = offset_in_page(pos);
		size_t part = min_t(loff_t, PAGE_SIZE - offset, len - pos);
		size_t done;

		part = min(part, iov_iter_count(to));
		/* A copy, even into a pipe: the page itself must not go there */
		done = copy_to_iter(page_address(value->pages[pos >> PAGE_SHIFT]) +
				    offset, part, to);
		copied += done;
		pos += done;
		if (done < part)
			return copied ?: -EFAULT;
	}
	return copied;
}

static ssize_t secretsfs_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct file *file = iocb->ki_filp;
	struct secrets_value *value = file_inode(file)->i_private;
	ssize_t copied = 0;
	u32 generation;
	void *rewrites;
	int err;

	do {
		if (copied > 0)
			iov_iter_revert(to, copied);
		err = secrets_read_begin(value->vs, &generation);
		if (!err)
			err = READ_ONCE(value->error);
		if (err)
			return err;
		rewrites = secretsfs_rewrites(value);
		if (!iocb->ki_pos)
			WRITE_ONCE(file->private_data, rewrites);
		else if (READ_ONCE(file->private_data) != rewrites)
			return -ESTALE;
		copied = secretsfs_copy(value, iocb->ki_pos, to);
	} while (secrets_read_retry(value->vs, generation));

	if (copied > 0)
		iocb->ki_pos += copied;
	return copied;
}

static vm_fault_t secretsfs_fault(struct vm_fault *vmf)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct secrets_value *value = inode->i_private;
	vm_fault_t ret = VM_FAULT_SIGBUS;

	filemap_invalidate_lock_shared(inode->i_mapping);
	if (!READ_ONCE(value->error) &&
	    vmf->pgoff < DIV_ROUND_UP(READ_ONCE(value->len), PAGE_SIZE))
		ret = vmf_insert_pfn(vmf->vma, vmf->address,
				     page_to_pfn(value->pages[vmf->pgoff]));
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return ret;
}

static const struct vm_operations_struct secretsfs_vm_ops = {
	.fault = secretsfs_fault,
};

static int secretsfs_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (vma->vm_flags & (VM_WRITE | VM_EXEC))
		return -EACCES;
	/* Without MAYWRITE a private mapping is none that copies on write */
	vm_flags_mod(vma, VM_PFNMAP | VM_IO | VM_DONTDUMP | VM_DONTEXPAND,
		     VM_MAYWRITE | VM_MAYEXEC);
	vma->vm_ops = &secretsfs_vm_ops;
	return 0;
}

static const struct file_operations secretsfs_file_operations = {
	.owner = THIS_MODULE,
	.open = secretsfs_open,
	.llseek = generic_file_llseek,
	.read_iter = secretsfs_read_iter,
	.splice_read = copy_splice_read,
	.mmap = secretsfs_mmap,
};

/* The length goes with the bytes that a read would find. */
static int secretsfs_getattr(struct mnt_idmap *idmap, const struct path *path,
			     struct kstat *stat, u32 request_mask,
			     unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	struct secrets_value *value = inode->i_private;
	int err = secrets_settle(value->vs);

	if (!err)
		secretsfs_fillattr(idmap, request_mask, inode, stat);
	return err;
}

static const struct inode_operations secretsfs_file_inode_operations = {
	.getattr = secretsfs_getattr,
};

static struct dentry *secretsfs_lookup(struct inode *dir, struct dentry *dentry,
				       unsigned int flags)
{
	struct secrets_device *vs = dir->i_sb->s_fs_info;
	u8 name[SECRETS_NAME_SIZE] = {};
	struct secrets_value *value;
	struct inode *inode;
	int err;

	if (dentry->d_name.len >= sizeof(name))
		return NULL;
	err = secrets_settle(vs);
	if (err)
		return ERR_PTR(err);
	memcpy(name, dentry->d_name.name, dentry->d_name.len);
	value = secrets_current(vs, name);
	if (!value)
		return NULL;

	inode = iget_locked(dir->i_sb, value->ino);
	if (!inode) {
		secrets_value_put(value);
		return ERR_PTR(-ENOMEM);
	}
	if (inode->i_state & I_NEW) {
		inode->i_op = &secretsfs_file_inode_operations;
		inode->i_fop = &secretsfs_file_operations;
		secretsfs_fill_inode(inode, value);
		/* Until the inode is evicted */
		inode->i_private = value;
		unlock_new_inode(inode);
	} else {
		secrets_value_put(value);
	}
	return d_splice_alias(inode, dentry);
}

static int secretsfs_readdir(struct file *file, struct dir_context *ctx)
{
	struct secrets_device *vs = file_inode(file)->i_sb->s_fs_info;
	int err;

	if (!dir_emit_dots(file, ctx))
		return 0;
	err = secrets_settle(vs);
	if (err)
		return err;
	for (;;) {
		struct secrets_value *value, *next = NULL;
		u8 name[SECRETS_NAME_SIZE];
		u64 ino;

		spin_lock_irq(&vs->lock);
		list_for_each_entry(value, &vs->values, node)
			if (value->current_value && value->id >= ctx->pos &&
			    (!next || value->id < next->id))
				next = value;
		if (next) {
			memcpy(name, next->name, sizeof(name));
			ino = next->ino;
			ctx->pos = next->id;
		}
		spin_unlock_irq(&vs->lock);
		if (!next ||
		    !dir_emit(ctx, name, strlen(name), ino, DT_REG))
			return 0;
		ctx->pos++;
	}
}

static const struct file_operations secretsfs_dir_operations = {
	.owner = THIS_MODULE,
	.llseek = generic_file_llseek,
	.read = generic_read_dir,
	.iterate_shared = secretsfs_readdir,
};

static const struct inode_operations secretsfs_dir_inode_operations = {
	.lookup = secretsfs_lookup,
};

/* Names are looked up anew, but for those of files in use. */
static int secretsfs_revalidate(struct dentry *dentry, unsigned int flags)
{
	struct secrets_value *value;
	struct inode *inode;
	int err;

	if (flags & LOOKUP_RCU)
		return -ECHILD;
	inode = d_inode(dentry);
	if (!inode)
		return 0;
	if (S_ISDIR(inode->i_mode))
		return 1;
	value = inode->i_private;
	err = secrets_settle(value->vs);
	return err ?: READ_ONCE(value->current_value);
}

static const struct dentry_operations secretsfs_dentry_operations = {
	.d_revalidate = secretsfs_revalidate,
	.d_delete = always_delete_dentry,
};

static void secretsfs_evict_inode(struct inode *inode)
{
	struct secrets_value *value = inode->i_private;

	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	if (value)
		secrets_value_put(value);
}

static const struct super_operations secretsfs_super_operations = {
	.statfs = simple_statfs,
	.drop_inode = generic_delete_inode,
	.evict_inode = secretsfs_evict_inode,
};

static int secretsfs_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct secrets_device *vs = sb->s_fs_info;
	struct timespec64 now;
	struct inode *root;

	sb->s_flags |= SB_RDONLY;
	sb->s_iflags |= SB_I_NOEXEC | SB_I_NODEV;
	sb->s_maxbytes = MAX_LFS_FILESIZE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_magic = SECRETSFS_MAGIC;
	sb->s_op = &secretsfs_super_operations;
	sb->s_d_op = &secretsfs_dentry_operations;
	sb->s_time_gran = 1;

	root = new_inode(sb);
	if (!root)
		return -ENOMEM;
	root->i_ino = SECRETSFS_ROOT_INO;
	root->i_mode = S_IFDIR | 0555;
	set_nlink(root, 2);
	ktime_get_real_ts64(&now);
	secretsfs_set_times(root, now);
	root->i_op = &secretsfs_dir_inode_operations;
	root->i_fop = &secretsfs_dir_operations;
	sb->s_root = d_make_root(root);
	if (!sb->s_root)
		return -ENOMEM;

	mutex_lock(&vs->sb_lock);
	vs->sb = sb;
	mutex_unlock(&vs->sb_lock);
	return 0;
}

/* All mounts of a device are the same file system. */
static int secretsfs_get_tree(struct fs_context *fc)
{
	struct secrets_device *vs = secrets_device_get();

	if (!vs)
		return -ENXIO;
	return get_tree_keyed(fc, secretsfs_fill_super, vs);
}

static int secretsfs_reconfigure(struct fs_context *fc)
{
	fc->sb_flags |= SB_RDONLY;
	return 0;
}

static void secretsfs_free_fc(struct fs_context *fc)
{
	/* Unless a new file system has taken it over */
	if (fc->s_fs_info)
		secrets_device_put(fc->s_fs_info);
}

static const struct fs_context_operations secretsfs_context_operations = {
	.get_tree = secretsfs_get_tree,
	.reconfigure = secretsfs_reconfigure,
	.free = secretsfs_free_fc,
};

static int secretsfs_init_fs_context(struct fs_context *fc)
{
	fc->ops = &secretsfs_context_operations;
	return 0;
}

static void secretsfs_kill_sb(struct super_block *sb)
{
	struct secrets_device *vs = sb->s_fs_info;

	mutex_lock(&vs->sb_lock);
	vs->sb = NULL;
	mutex_unlock(&vs->sb_lock);
	kill_anon_super(sb);
	secrets_device_put(vs);
}

static struct file_system_type secretsfs_type = {
	.owner = THIS_MODULE,
	.name = "secretsfs",
	.init_fs_context = secretsfs_init_fs_context,
	.kill_sb = secretsfs_kill_sb,
};
MODULE_ALIAS_FS("secretsfs");

int __init secretsfs_init(void)
{
	return register_filesystem(&secretsfs_type);
}

void secretsfs_exit(void)
{
	unregister_filesystem(&secretsfs_type);
}
