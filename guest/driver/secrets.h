/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/secrets: the ioctls.
 *
 * Values are also files of the file system "secretsfs"; the device adds what
 * files cannot say: the versions, the epoch, and a value fetched once without
 * a file. poll() reports EPOLLIN when the epoch is no longer the one that
 * SECRETS_IOC_EPOCH last returned on this file, and EPOLLERR while the device
 * cannot be dealt with and all reads fail with EIO, or is gone.
 */
#ifndef _UAPI_LINUX_SECRETS_H
#define _UAPI_LINUX_SECRETS_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Bytes of a name field: at most 127 characters, padded with zero bytes */
#define SECRETS_NAME_SIZE	128

struct secrets_entry {
	__u8 name[SECRETS_NAME_SIZE];
	/* Rises when the value is rotated */
	__u64 version;
	/* Bytes */
	__u32 value_len;
	__u32 uid;
	__u32 gid;
	__u32 mode;
};

struct secrets_list {
	/* In: the address of an array of struct secrets_entry */
	__u64 entries;
	/* In: elements of that array; out: elements written */
	__u32 count;
	/* Out: secrets that have a value; may be more than count */
	__u32 total;
};

struct secrets_get {
	__u8 name[SECRETS_NAME_SIZE];
	/* In: the address of a buffer, which the caller should wipe after use */
	__u64 buffer;
	/* In: bytes of that buffer; out: bytes of the value, also with EMSGSIZE */
	__u32 len;
	__u32 reserved;
	/* Out */
	__u64 version;
};

#define SECRETS_IOC_MAGIC	0xb5

/* The secrets that have a value */
#define SECRETS_IOC_LIST	_IOWR(SECRETS_IOC_MAGIC, 0, struct secrets_list)

/*
 * A value, straight from the host. EMSGSIZE: the buffer is too small; EACCES:
 * refused by the host's policy; EKEYREVOKED; ENOENT: no such secret; EBUSY:
 * a snapshot is being taken; EAGAIN: the value cannot be had now.
 */
#define SECRETS_IOC_GET		_IOWR(SECRETS_IOC_MAGIC, 1, struct secrets_get)

/* The epoch whose changes are all visible in files and mappings */
#define SECRETS_IOC_EPOCH	_IOR(SECRETS_IOC_MAGIC, 2, __u64)

#endif /* _UAPI_LINUX_SECRETS_H */
