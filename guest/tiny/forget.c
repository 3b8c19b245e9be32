/* Keeps copies of a secret in memory and registers over a snapshot, and says what has become of them. */
#include "tiny.h"

/* The attached page, and where the copies are. */
#define ATTACHED 0x1000000ul
#define COPY 0x1100000ul
#define SPLIT (COPY + 3 * PAGE - 11)
#define HEX (COPY + 4 * PAGE)
#define FRAGMENT (COPY + 6 * PAGE + 100)

/* Bytes that general registers hold, and that a fragment lacks at its beginning. */
#define REGISTERS 40
#define LOST 13

/* Low half of the epoch, the first field of the configuration space. */
#define REG_EPOCH 0x100

static void hex(u8 *to, const u8 *from, u64 len)
{
        static const char digits[] = "0123456789abcdef";

        while (len--) {
                *to++ = (u8)digits[*from >> 4];
                *to++ = (u8)digits[*from++ & 15];
        }
}

/* Ends a line, then waits for another epoch with the first 40 bytes at `words` in registers, and puts them back from
 * there. Whoever has seen the line may save the machine: registers and epoch are read before it ends. */
static void wait_with_registers(volatile u64 *words, u64 address)
{
        /* Every read of the register is an exit: between two of them the vCPU can be saved. */
        __asm__ volatile("mov (%0), %%r8\n"
                         "mov 8(%0), %%r9\n"
                         "mov 16(%0), %%r10\n"
                         "mov 24(%0), %%r11\n"
                         "mov 32(%0), %%r12\n"
                         "mov (%1), %%ecx\n"
                         "mov $0x3f8, %%edx\n"
                         "mov $10, %%al\n"
                         "outb %%al, %%dx\n"
                         "1: mov (%1), %%eax\n"
                         "cmp %%eax, %%ecx\n"
                         "je 1b\n"
                         "mov %%r8, (%0)\n"
                         "mov %%r9, 8(%0)\n"
                         "mov %%r10, 16(%0)\n"
                         "mov %%r11, 24(%0)\n"
                         "mov %%r12, 32(%0)\n"
                         :
                         : "r"(words), "r"(address)
                         : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "memory", "cc");
}

static void show(const char *what, u64 address, u64 len)
{
        print("%s ", what);
        print_hex((const u8 *)address, len);
        print("\n");
}

bool forget(bool hold)
{
        u64 registers[REGISTERS / 8];
        struct entry entry;
        u32 total, count, handle, len;
        const u8 *value = (const u8 *)ATTACHED;

        if (!device_find() || !device_init() || secrets_list(0, &total, &count) != OK || !total) {
                print("tiny: FAILED: no secret\n");
                return false;
        }
        memcpy(&entry, (const void *)list_entry(0), sizeof(entry));
        if (secrets_attach(entry.name, ATTACHED, PAGE, &handle, &len) != OK || len < REGISTERS) {
                print("tiny: FAILED: it is not attached, or too short\n");
                return false;
        }
        memcpy((void *)COPY, value, len);
        memcpy((void *)SPLIT, value, len);
        hex((u8 *)HEX, value, len);
        memcpy((void *)FRAGMENT, value + LOST, len - LOST);
        memcpy(registers, value, REGISTERS);
        do {
                print("holding");
                wait_with_registers(registers, device_address(REG_EPOCH));
                show("page", ATTACHED, len);
                show("copy", COPY, len);
                show("split", SPLIT, len);
                show("hex", HEX, 2 * len);
                show("fragment", FRAGMENT, len - LOST);
                show("registers", (u64)registers, REGISTERS);
        } while (hold);
        return true;
}
