/* What the parts of tiny share. tiny is a guest without an operating system: interrupts stay off, memory is
 * mapped to itself, and everything is polled, so it runs in some thousand instructions. */
#ifndef TINY_H
#define TINY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE 4096ul

/* machine.c: console, power, command line, memory */
void print(const char *format, ...); /* %s, %u (u64), %x (u64) */
void print_hex(const u8 *bytes, u64 len);
_Noreturn void power_off(void);
_Noreturn void reset(void);
void machine_init(const u8 *boot_params);
bool argument(const char *name, char *value, size_t size); /* name=value on the command line */
u64 ram_end(void); /* end of the RAM that begins at 1 MiB */
bool same(const char *a, const char *b);
void *memset(void *to, int byte, size_t len);
void *memcpy(void *restrict to, const void *restrict from, size_t len);

/* device.c: virtio-secrets behind virtio-mmio (resources/virtio-secrets.md) */
#define QUEUE_SIZE 16
#define NAME_LEN 128

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };

struct descriptor {
        u64 address;
        u32 len;
        u16 flags;
        u16 next;
};

struct available {
        u16 flags;
        u16 index;
        u16 ring[QUEUE_SIZE];
};

struct used {
        u16 flags;
        u16 index;
        struct {
                u32 id;
                u32 len;
        } ring[QUEUE_SIZE];
};

/* What came of a request: a status of the device, or that there was none. */
enum outcome {
        OK,
        NOENT,
        DENIED,
        REVOKED,
        FROZEN,
        TOOBIG,
        UNAVAILABLE,
        INVALID,
        EMPTY = 100, /* the chain came back with a used length of 0, nothing written */
        NEEDS_RESET, /* the device wants a reset */
        SILENT, /* nothing happened for a second or two */
};

enum { LIST = 1, ATTACH, DETACH, GET, ACK };

struct response {
        u32 status;
        u32 reserved;
        u64 epoch;
        u8 body[PAGE - 16];
};

struct entry {
        char name[NAME_LEN];
        u64 version;
        u32 value_len;
        u32 uid;
        u32 gid;
        u32 mode;
};

/* Each in pages of its own. */
extern struct descriptor table[QUEUE_SIZE];
extern volatile struct available available;
extern volatile struct used used;
extern u8 request[3 * PAGE];
extern volatile struct response response;

bool device_find(void);
void device_reset(void);
bool device_start(u64 table_address, u64 available_address, u64 used_address); /* status, features, queue, DRIVER_OK */
bool device_init(void); /* a reset and a start with the rings above */
u32 device_register(u32 offset);
u64 device_address(u32 offset); /* where that register is */
void device_write(u32 offset, u32 value);
void device_offer(u16 head); /* one chain in the available ring, and the notification */
enum outcome device_wait(u32 *len); /* until the next chain is used; *len is the used length */

/* Requests: bytes are gathered in `request`, sent as one chain of two descriptors. */
void request_begin(u16 type);
void request_u32(u32 value);
void request_u64(u64 value);
void request_name(const char *name);
enum outcome request_send(u32 response_len);

enum outcome secrets_list(u32 start, u32 *total, u32 *count); /* entries: list_entry */
const volatile struct entry *list_entry(u32 index);
enum outcome secrets_attach(const char *name, u64 address, u64 len, u32 *handle, u32 *value_len);
enum outcome secrets_detach(u32 handle);
enum outcome secrets_ack(u64 epoch);

/* forget.c: copies of a secret over a snapshot */
bool forget(bool hold); /* hold: over and over again */

/* conformance.c: what a hostile driver may try, and what the specification says comes of it */
bool conformance(void);

#endif
