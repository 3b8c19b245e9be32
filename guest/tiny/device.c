/* A driver of virtio-secrets: virtio-mmio version 2, one split queue, polled. */
#include "tiny.h"

/* Where the monitor puts its virtio-mmio slots. */
enum { SLOTS = 15 };
#define SLOT_START 0xd0000000ul
#define SLOT_SIZE 0x1000ul

enum {
        MAGIC = 0x74726976,
        VERSION = 2,
        DEVICE_ID = 58,
        /* registers */
        REG_MAGIC = 0x00,
        REG_VERSION = 0x04,
        REG_DEVICE_ID = 0x08,
        REG_DRIVER_FEATURES = 0x20,
        REG_DRIVER_FEATURES_SELECT = 0x24,
        REG_QUEUE_SELECT = 0x30,
        REG_QUEUE_NUM = 0x38,
        REG_QUEUE_READY = 0x44,
        REG_NOTIFY = 0x50,
        REG_STATUS = 0x70,
        REG_QUEUE_TABLE = 0x80,
        REG_QUEUE_AVAILABLE = 0x90,
        REG_QUEUE_USED = 0xa0,
        /* device status */
        ACKNOWLEDGE = 1,
        DRIVER = 2,
        DRIVER_OK = 4,
        FEATURES_OK = 8,
        STATUS_NEEDS_RESET = 64,
        /* VIRTIO_F_VERSION_1 is bit 32 */
        FEATURE_VERSION_1_HIGH = 1,
};

struct descriptor table[QUEUE_SIZE] __attribute__((aligned(PAGE)));
volatile struct available available __attribute__((aligned(PAGE)));
volatile struct used used __attribute__((aligned(PAGE)));
u8 request[3 * PAGE] __attribute__((aligned(PAGE)));
volatile struct response response __attribute__((aligned(PAGE)));

static u64 slot;
static u32 request_len;
static u16 seen;

/* x86 keeps the order of stores, and of loads: only the compiler has to be told. */
static void barrier(void)
{
        __asm__ volatile("" : : : "memory");
}

static u64 ticks(void)
{
        u32 low, high;

        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        return (u64)high << 32 | low;
}

u64 device_address(u32 offset)
{
        return slot + offset;
}

u32 device_register(u32 offset)
{
        return *(volatile u32 *)device_address(offset);
}

void device_write(u32 offset, u32 value)
{
        barrier();
        *(volatile u32 *)(slot + offset) = value;
}

bool device_find(void)
{
        for (slot = SLOT_START; slot < SLOT_START + SLOTS * SLOT_SIZE; slot += SLOT_SIZE) {
                if (device_register(REG_MAGIC) == MAGIC && device_register(REG_VERSION) == VERSION &&
                    device_register(REG_DEVICE_ID) == DEVICE_ID)
                        return true;
        }
        return false;
}

void device_reset(void)
{
        device_write(REG_STATUS, 0);
        while (device_register(REG_STATUS))
                ;
        memset((void *)&available, 0, sizeof(available));
        memset((void *)&used, 0, sizeof(used));
        seen = 0;
}

static void write_address(u32 offset, u64 address)
{
        device_write(offset, (u32)address);
        device_write(offset + 4, (u32)(address >> 32));
}

bool device_start(u64 table_address, u64 available_address, u64 used_address)
{
        u32 status = ACKNOWLEDGE | DRIVER;

        device_write(REG_STATUS, status);
        device_write(REG_DRIVER_FEATURES_SELECT, 1);
        device_write(REG_DRIVER_FEATURES, FEATURE_VERSION_1_HIGH);
        status |= FEATURES_OK;
        device_write(REG_STATUS, status);
        if (device_register(REG_STATUS) != status)
                return false;
        device_write(REG_QUEUE_SELECT, 0);
        device_write(REG_QUEUE_NUM, QUEUE_SIZE);
        write_address(REG_QUEUE_TABLE, table_address);
        write_address(REG_QUEUE_AVAILABLE, available_address);
        write_address(REG_QUEUE_USED, used_address);
        device_write(REG_QUEUE_READY, 1);
        status |= DRIVER_OK;
        device_write(REG_STATUS, status);
        return device_register(REG_STATUS) == status;
}

bool device_init(void)
{
        device_reset();
        return device_start((u64)table, (u64)&available, (u64)&used);
}

void device_offer(u16 head)
{
        available.ring[available.index % QUEUE_SIZE] = head;
        barrier();
        available.index++;
        device_write(REG_NOTIFY, 0);
}

enum outcome device_wait(u32 *len)
{
        u64 start = ticks();

        /* A second or two: time-stamp counters run at 1 to 5 GHz. */
        while (ticks() - start < 4000000000ul) {
                if (used.index != seen) {
                        barrier();
                        *len = used.ring[seen % QUEUE_SIZE].len;
                        seen++;
                        return *len ? (enum outcome)response.status : EMPTY;
                }
                if (device_register(REG_STATUS) & STATUS_NEEDS_RESET)
                        return NEEDS_RESET;
        }
        return SILENT;
}

void request_begin(u16 type)
{
        request_len = 0;
        request_u32(type);
        request_u32(0);
}

void request_u32(u32 value)
{
        memcpy(request + request_len, &value, sizeof(value));
        request_len += sizeof(value);
}

void request_u64(u64 value)
{
        memcpy(request + request_len, &value, sizeof(value));
        request_len += sizeof(value);
}

void request_name(const char *name)
{
        memset(request + request_len, 0, NAME_LEN);
        for (u32 i = 0; i < NAME_LEN && name[i]; i++)
                request[request_len + i] = (u8)name[i];
        request_len += NAME_LEN;
}

enum outcome request_send(u32 response_len)
{
        u32 len;

        table[0] = (struct descriptor){ (u64)request, request_len, DESC_NEXT, 1 };
        table[1] = (struct descriptor){ (u64)&response, response_len, DESC_WRITE, 0 };
        response.status = SILENT;
        device_offer(0);
        return device_wait(&len);
}

enum outcome secrets_list(u32 start, u32 *total, u32 *count)
{
        enum outcome outcome;

        request_begin(LIST);
        request_u32(start);
        request_u32(0);
        outcome = request_send(sizeof(response));
        *total = ((volatile u32 *)response.body)[0];
        *count = ((volatile u32 *)response.body)[1];
        return outcome;
}

const volatile struct entry *list_entry(u32 index)
{
        return (const volatile struct entry *)(response.body + 8) + index;
}

enum outcome secrets_attach(const char *name, u64 address, u64 len, u32 *handle, u32 *value_len)
{
        enum outcome outcome;

        request_begin(ATTACH);
        request_name(name);
        request_u32(1);
        request_u32(0);
        request_u64(address);
        request_u64(len);
        outcome = request_send(32);
        *handle = ((volatile u32 *)response.body)[0];
        *value_len = ((volatile u32 *)response.body)[1];
        return outcome;
}

enum outcome secrets_detach(u32 handle)
{
        request_begin(DETACH);
        request_u32(handle);
        request_u32(0);
        return request_send(16);
}

enum outcome secrets_ack(u64 epoch)
{
        request_begin(ACK);
        request_u64(epoch);
        return request_send(16);
}
