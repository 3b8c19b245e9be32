/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * virtio-secrets: what the driver and the device say to each other.
 *
 * The layout is specified in resources/virtio-secrets.md. All fields are
 * little endian; reserved fields are zero.
 */
#ifndef _UAPI_LINUX_VIRTIO_SECRETS_H
#define _UAPI_LINUX_VIRTIO_SECRETS_H

#include <linux/types.h>
#include <linux/virtio_types.h>

/* Unassigned in virtio 1.3, and within the range that fits PCI device ids */
#define VIRTIO_ID_SECRETS		58

/* Bytes of a name field: at most 127 characters, padded with zero bytes */
#define VIRTIO_SECRETS_NAME_SIZE	128

struct virtio_secrets_config {
	/* Rises on every restore, fork, rotation and revocation */
	__le64 epoch;
	/* Secrets declared */
	__le32 count;
	/* Bytes in the longest value the device can deliver */
	__le32 max_value_len;
	__le32 state;
	__le32 reserved;
};

/* Request types */
#define VIRTIO_SECRETS_LIST		1
#define VIRTIO_SECRETS_ATTACH		2
#define VIRTIO_SECRETS_DETACH		3
#define VIRTIO_SECRETS_GET		4
#define VIRTIO_SECRETS_ACK		5

struct virtio_secrets_req {
	__le16 type;
	__le16 reserved0;
	__le32 reserved1;
};

/* Statuses */
#define VIRTIO_SECRETS_S_OK		0
#define VIRTIO_SECRETS_S_NOENT		1
#define VIRTIO_SECRETS_S_DENIED		2
#define VIRTIO_SECRETS_S_REVOKED	3
#define VIRTIO_SECRETS_S_FROZEN		4
#define VIRTIO_SECRETS_S_TOOBIG		5
#define VIRTIO_SECRETS_S_UNAVAILABLE	6
#define VIRTIO_SECRETS_S_INVALID	7

struct virtio_secrets_resp {
	__le32 status;
	__le32 reserved;
	__le64 epoch;
};

struct virtio_secrets_list_req {
	struct virtio_secrets_req head;
	/* Number of the first entry wanted */
	__le32 start;
	__le32 reserved;
};

struct virtio_secrets_list_entry {
	__u8 name[VIRTIO_SECRETS_NAME_SIZE];
	__le64 version;
	__le32 value_len;
	__le32 uid;
	__le32 gid;
	/* A subset of 0444 */
	__le32 mode;
};

struct virtio_secrets_list_resp {
	struct virtio_secrets_resp head;
	/* Secrets declared */
	__le32 total;
	/* Entries that follow */
	__le32 count;
	struct virtio_secrets_list_entry entries[];
};

struct virtio_secrets_range {
	/* Guest-physical; both multiples of 4096 */
	__le64 address;
	__le64 length;
};

struct virtio_secrets_attach_req {
	struct virtio_secrets_req head;
	__u8 name[VIRTIO_SECRETS_NAME_SIZE];
	__le32 range_count;
	__le32 reserved;
	struct virtio_secrets_range ranges[];
};

struct virtio_secrets_attach_resp {
	struct virtio_secrets_resp head;
	__le32 handle;
	/* With TOOBIG: the length that is needed */
	__le32 value_len;
	__le64 version;
};

struct virtio_secrets_detach_req {
	struct virtio_secrets_req head;
	__le32 handle;
	__le32 reserved;
};

struct virtio_secrets_get_req {
	struct virtio_secrets_req head;
	__u8 name[VIRTIO_SECRETS_NAME_SIZE];
};

struct virtio_secrets_get_resp {
	struct virtio_secrets_resp head;
	/* With TOOBIG: the length that is needed, and no value follows */
	__le32 value_len;
	__le32 reserved;
	__le64 version;
};

struct virtio_secrets_ack_req {
	struct virtio_secrets_req head;
	__le64 epoch;
};

/* Event types */
#define VIRTIO_SECRETS_E_ROTATED	1
#define VIRTIO_SECRETS_E_REVOKED	2
#define VIRTIO_SECRETS_E_REHYDRATED	3

struct virtio_secrets_event {
	__le32 type;
	__le32 reserved;
	__le64 epoch;
	__u8 name[VIRTIO_SECRETS_NAME_SIZE];
};

#endif /* _UAPI_LINUX_VIRTIO_SECRETS_H */
