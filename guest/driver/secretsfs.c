// SPDX-License-Identifier: GPL-2.0
/*
 * secretsfs: the current values as files.
 *
 * Reads copy straight from the attached pages and mappings show these very
 * pages: no byte of a value enters the page cache. An inode is one version of a
 * secret, so an open file keeps the version it opened; the name finds the new
 * one. A file that is read on after the guest was restored with another
 * value reports ESTALE, never a mixture; read again from its start, it gives
 * the new value.
 */
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/pagemap.h>

#include "compat.h"
#include "internal.h"

#define SECRETSFS_MAGIC		0x53435254	/* "SCRT" */
#define ROOT_INO		1

/* The inode of a value, with a reference, if there is one */
static struct inode *get_inode(struct secret_value *value)
{
	struct inode *inode;

	spin_lock(&value->vs->inode_lock);
	inode = value->inode ? igrab(value->inode) : NULL;
	spin_unlock(&value->vs->inode_lock);
	return inode;
}

/* Takes the pages out of all mappings; value->error keeps them from returning */
void secretsfs_zap(struct secret_value *value)
{
	struct inode *inode = get_inode(value);

	if (!inode)
		return;
	filemap_invalidate_lock(inode->i_mapping);
	unmap_mapping_range(inode->i_mapping, 0, 0, 1);
	filemap_invalidate_unlock(inode->i_mapping);
	iput(inode);
}

/* inode_lock orders the writes of i_size among each other */
void secretsfs_resize(struct secret_value *value)
{
	spin_lock(&value->vs->inode_lock);
	if (value->inode)
		i_size_write(value->inode, value->len);
	spin_unlock(&value->vs->inode_lock);
}

static void *rewrites_seen(u32 rewrites)
{
	return (void *)(uintptr_t)rewrites;
}

static int secretsfs_open(struct inode *inode, struct file *file)
{
	struct secret_value *value = inode->i_private;
	u32 epoch;
	int ret;

	ret = virtio_secrets_settle(value->vs, &epoch);
	if (ret)
		return ret;
	/* Found under a name that means another value by now: look again */
	if (!READ_ONCE(value->current_version))
		return -EOPENSTALE;
	file->private_data = rewrites_seen(READ_ONCE(value->rewrites));
	return 0;
}

static ssize_t secretsfs_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct file *file = iocb->ki_filp;
	struct secret_value *value = file_inode(file)->i_private;
	size_t wanted, done;
	u32 epoch, len;
	void *rewrites;
	int ret;

	for (;;) {
		ret = virtio_secrets_settle(value->vs, &epoch);
		if (!ret)
			ret = READ_ONCE(value->error);
		if (ret)
			return ret;
		rewrites = rewrites_seen(READ_ONCE(value->rewrites));
		if (!iocb->ki_pos)
			WRITE_ONCE(file->private_data, rewrites);
		else if (READ_ONCE(file->private_data) != rewrites)
			return -ESTALE;

		len = READ_ONCE(value->len);
		wanted = iocb->ki_pos < len ?
			 min_t(size_t, len - iocb->ki_pos, iov_iter_count(to)) :
			 0;
		done = secret_pages_copy(&value->pages, iocb->ki_pos, wanted,
					 to);
		/* In the same epoch these were the bytes of one value */
		if (epoch == virtio_secrets_epoch(value->vs) &&
		    !READ_ONCE(value->error))
			break;
		iov_iter_revert(to, done);
	}
	iocb->ki_pos += done;
	return done || !wanted ? done : -EFAULT;
}

static vm_fault_t secretsfs_fault(struct vm_fault *vmf)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct secret_value *value = inode->i_private;
	const struct secret_pages *pages = &value->pages;
	vm_fault_t ret = VM_FAULT_SIGBUS;

	filemap_invalidate_lock_shared(inode->i_mapping);
	if (!READ_ONCE(value->error) &&
	    vmf->pgoff < DIV_ROUND_UP(READ_ONCE(value->len), PAGE_SIZE)) {
		pgoff_t mask = (1UL << pages->order) - 1;
		struct page *chunk = pages->chunks[vmf->pgoff >> pages->order];

		ret = vmf_insert_pfn(vmf->vma, vmf->address,
				     page_to_pfn(chunk) + (vmf->pgoff & mask));
	}
	filemap_invalidate_unlock_shared(inode->i_mapping);
	return ret;
}

static const struct vm_operations_struct secretsfs_vm_ops = {
	.fault	= secretsfs_fault,
};

static int secretsfs_mmap(struct file *file, struct vm_area_struct *vma)
{
	const vm_flags_t set = VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP;
	/* A page inserted by number must never be copied on write */
	const vm_flags_t clear = VM_MAYWRITE | VM_MAYEXEC;

	if (vma->vm_flags & (VM_WRITE | VM_EXEC))
		return -EACCES;
	vm_flags_mod(vma, set, clear);
	vma->vm_ops = &secretsfs_vm_ops;
	return 0;
}

static const struct file_operations secretsfs_file_ops = {
	.owner		= THIS_MODULE,
	.open		= secretsfs_open,
	.llseek		= generic_file_llseek,
	.read_iter	= secretsfs_read_iter,
	.splice_read	= copy_splice_read,
	.mmap		= secretsfs_mmap,
};

static struct inode *new_secretsfs_inode(struct super_block *sb, u64 ino,
					 umode_t mode)
{
	struct inode *inode = new_inode(sb);

	if (!inode)
		return NULL;
	inode->i_ino = ino;
	inode->i_mode = mode;
	simple_inode_init_ts(inode);
	return inode;
}

static struct dentry *secretsfs_lookup(struct inode *dir,
				       struct dentry *dentry,
				       unsigned int flags)
{
	struct virtio_secrets *vs = dir->i_sb->s_fs_info;
	struct secret_value *value = secrets_find(vs, dentry->d_name.name);
	struct inode *inode = NULL;

	if (value) {
		inode = new_secretsfs_inode(dir->i_sb, value->ino,
					    S_IFREG | value->mode);
		if (!inode) {
			secret_value_put(value);
			return ERR_PTR(-ENOMEM);
		}
		inode->i_uid = value->uid;
		inode->i_gid = value->gid;
		inode->i_fop = &secretsfs_file_ops;
		inode->i_private = value;
		spin_lock(&vs->inode_lock);
		value->inode = inode;
		spin_unlock(&vs->inode_lock);
		secretsfs_resize(value);
	}
	return d_splice_alias(inode, dentry);
}

static int secretsfs_iterate(struct file *file, struct dir_context *ctx)
{
	struct virtio_secrets *vs = file_inode(file)->i_sb->s_fs_info;
	struct secret_value *value;
	bool more = true;

	if (!dir_emit_dots(file, ctx))
		return 0;
	/* Positions after the dots are inode numbers */
	while (more && (value = secrets_next(vs, ctx->pos))) {
		more = dir_emit(ctx, value->name, strlen(value->name),
				value->ino, DT_REG);
		if (more)
			ctx->pos = value->ino + 1;
		secret_value_put(value);
	}
	return 0;
}

static const struct inode_operations secretsfs_dir_inode_ops = {
	.lookup		= secretsfs_lookup,
};

static const struct file_operations secretsfs_dir_ops = {
	.owner		= THIS_MODULE,
	.llseek		= generic_file_llseek,
	.read		= generic_read_dir,
	.iterate_shared	= secretsfs_iterate,
};

static int secretsfs_revalidate(struct dentry *dentry, unsigned int flags)
{
	const struct secret_value *value;

	if (flags & LOOKUP_RCU)
		return -ECHILD;
	if (d_is_negative(dentry))
		return 0;
	value = d_inode(dentry)->i_private;
	return READ_ONCE(value->current_version);
}

/* No dentry outlives its users, and so no inode and no value does */
static const struct dentry_operations secretsfs_dentry_ops = {
	.d_revalidate	= secretsfs_revalidate,
	.d_delete	= always_delete_dentry,
};

static void secretsfs_evict_inode(struct inode *inode)
{
	struct secret_value *value = inode->i_private;

	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	if (!value)
		return;
	spin_lock(&value->vs->inode_lock);
	if (value->inode == inode)
		value->inode = NULL;
	spin_unlock(&value->vs->inode_lock);
	secret_value_put(value);
}

static const struct super_operations secretsfs_super_ops = {
	.statfs		= simple_statfs,
	.drop_inode	= generic_delete_inode,
	.evict_inode	= secretsfs_evict_inode,
};

static int secretsfs_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct virtio_secrets *vs = sb->s_fs_info;
	struct inode *root;

	kref_get(&vs->refs);
	sb->s_maxbytes = MAX_LFS_FILESIZE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_magic = SECRETSFS_MAGIC;
	sb->s_op = &secretsfs_super_ops;
	sb->s_d_op = &secretsfs_dentry_ops;
	sb->s_time_gran = 1;
	sb->s_iflags |= SB_I_NOEXEC | SB_I_NODEV;

	root = new_secretsfs_inode(sb, ROOT_INO, S_IFDIR | 0555);
	if (!root)
		return -ENOMEM;
	set_nlink(root, 2);
	root->i_op = &secretsfs_dir_inode_ops;
	root->i_fop = &secretsfs_dir_ops;
	sb->s_root = d_make_root(root);
	return sb->s_root ? 0 : -ENOMEM;
}

static int secretsfs_get_tree(struct fs_context *fc)
{
	struct virtio_secrets *vs = virtio_secrets_get();
	int ret;

	if (!vs)
		return -ENODEV;
	/* All mounts of one device show one file system */
	ret = get_tree_keyed(fc, secretsfs_fill_super, vs);
	virtio_secrets_put(vs);
	return ret;
}

static int secretsfs_reconfigure(struct fs_context *fc)
{
	fc->sb_flags |= SB_RDONLY;
	return 0;
}

static const struct fs_context_operations secretsfs_context_ops = {
	.get_tree	= secretsfs_get_tree,
	.reconfigure	= secretsfs_reconfigure,
};

static int secretsfs_init_fs_context(struct fs_context *fc)
{
	fc->sb_flags |= SB_RDONLY | SB_NOSUID | SB_NODEV | SB_NOEXEC;
	fc->ops = &secretsfs_context_ops;
	return 0;
}

static void secretsfs_kill_sb(struct super_block *sb)
{
	struct virtio_secrets *vs = sb->s_fs_info;

	kill_anon_super(sb);
	virtio_secrets_put(vs);
}

static struct file_system_type secretsfs_type = {
	.owner			= THIS_MODULE,
	.name			= "secretsfs",
	.init_fs_context	= secretsfs_init_fs_context,
	.kill_sb		= secretsfs_kill_sb,
};
MODULE_ALIAS_FS("secretsfs");

int secretsfs_register(void)
{
	return register_filesystem(&secretsfs_type);
}

void secretsfs_unregister(void)
{
	unregister_filesystem(&secretsfs_type);
}
