/* The machine: console, power, command line, memory. */
#include <stdarg.h>

#include "tiny.h"

/* COM1; sleep control and reset registers of the monitor's FADT, S5 and enable (ACPI 6.5, 4.8.3.7). */
enum { COM1 = 0x3f8, SLEEP_CONTROL = 0x600, SLEEP_S5 = 5 << 2 | 1 << 5, RESET = 0x604 };

/* Offsets in boot_params (Documentation/arch/x86/zero-page.rst). */
enum { E820_ENTRIES = 0x1e8, CMDLINE = 0x228, E820_TABLE = 0x2d0, E820_ENTRY = 20, E820_RAM = 1 };

static const char *cmdline = "";
static u64 memory_end;

static void out8(u16 port, u8 value)
{
        __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void print_char(char c)
{
        out8(COM1, (u8)c);
}

static void print_number(u64 value, u64 base)
{
        char digits[20];
        int n = 0;

        do {
                digits[n++] = "0123456789abcdef"[value % base];
                value /= base;
        } while (value);
        while (n)
                print_char(digits[--n]);
}

void print(const char *format, ...)
{
        va_list arguments;

        va_start(arguments, format);
        for (; *format; format++) {
                if (*format != '%') {
                        print_char(*format);
                        continue;
                }
                switch (*++format) {
                case 's':
                        for (const char *s = va_arg(arguments, const char *); *s; s++)
                                print_char(*s);
                        break;
                case 'u':
                        print_number(va_arg(arguments, u64), 10);
                        break;
                default:
                        print_number(va_arg(arguments, u64), 16);
                        break;
                }
        }
        va_end(arguments);
}

void print_hex(const u8 *bytes, u64 len)
{
        for (u64 i = 0; i < len; i++) {
                print_char("0123456789abcdef"[bytes[i] >> 4]);
                print_char("0123456789abcdef"[bytes[i] & 15]);
        }
}

static _Noreturn void halt(void)
{
        for (;;)
                __asm__ volatile("hlt");
}

_Noreturn void power_off(void)
{
        out8(SLEEP_CONTROL, SLEEP_S5);
        halt();
}

_Noreturn void reset(void)
{
        out8(RESET, 1);
        halt();
}

void machine_init(const u8 *boot_params)
{
        cmdline = (const char *)(u64) * (const u32 *)(boot_params + CMDLINE);
        for (u32 i = 0; i < boot_params[E820_ENTRIES]; i++) {
                const u8 *entry = boot_params + E820_TABLE + i * E820_ENTRY;
                u64 start = (u64) * (const u32 *)entry | (u64) * (const u32 *)(entry + 4) << 32;
                u64 len = (u64) * (const u32 *)(entry + 8) | (u64) * (const u32 *)(entry + 12) << 32;

                if (*(const u32 *)(entry + 16) == E820_RAM && start == 0x100000)
                        memory_end = start + len;
        }
}

u64 ram_end(void)
{
        return memory_end;
}

bool argument(const char *name, char *value, size_t size)
{
        for (const char *at = cmdline; *at; at++) {
                const char *n = name;

                while (*n && *n == *at) {
                        n++;
                        at++;
                }
                if (!*n && *at == '=') {
                        for (at++; *at && *at != ' ' && size > 1; size--)
                                *value++ = *at++;
                        *value = 0;
                        return true;
                }
                while (*at && *at != ' ')
                        at++;
                if (!*at)
                        break;
        }
        return false;
}

bool same(const char *a, const char *b)
{
        while (*a && *a == *b) {
                a++;
                b++;
        }
        return *a == *b;
}

/* The compiler may call these. */
void *memset(void *to, int byte, size_t len)
{
        for (u8 *at = to; len--; at++)
                *(volatile u8 *)at = (u8)byte;
        return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t len)
{
        volatile u8 *at = to;

        for (const u8 *byte = from; len--; byte++)
                *at++ = *byte;
        return to;
}
