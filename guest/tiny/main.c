/* The scenarios, chosen by tiny=NAME on the kernel command line:
 *
 *   hello        says so and powers off (also without tiny=)
 *   reset        says so and resets the machine
 *   spin         runs for ever without an exit
 *   halt         sleeps for ever
 *   touch        writes a word to every page of mib=N MiB of memory
 *   read         attaches every secret and prints it, then detaches it; with hold=1 keeps it and spins, with hold=2
 *                keeps it and sleeps for ever
 *   forget       keeps copies of the first secret in memory and registers until the epoch changes, and prints them;
 *                with hold=1 goes on keeping them
 *   conformance  tries everything that a hostile driver may, and checks what comes of it
 *
 * Each ends with the line "tiny: done" or "tiny: FAILED", and powers off. */
#include "tiny.h"

/* Pages for secrets, above anything else that is in memory early. */
#define POOL 0x1000000ul
#define POOL_LEN 0x200000ul

_Noreturn void main(const u8 *boot_params);

static char hold;

static bool fail(const char *what)
{
        print("tiny: FAILED: %s\n", what);
        return false;
}

static bool touch(void)
{
        char digits[16] = "";
        u64 mib = 0, end;

        if (!argument("mib", digits, sizeof(digits)))
                return fail("touch needs mib=N");
        for (const char *digit = digits; *digit; digit++)
                mib = mib * 10 + (u64)(*digit - '0');
        end = 0x200000 + (mib << 20);
        if (end > ram_end())
                return fail("touch: there is less memory than that");
        for (u64 address = 0x200000; address < end; address += PAGE)
                *(volatile u64 *)address = address;
        print("touched %u MiB\n", mib);
        return true;
}

static bool is_zero(const volatile u8 *bytes, u64 len)
{
        while (len--)
                if (*bytes++)
                        return false;
        return true;
}

/* Prints one secret: a line "NAME version=.. length=.. mode=.. uid=.. gid=.. value=HEX". */
static bool read_one(const struct entry *entry, u64 address)
{
        u64 len = (entry->value_len + PAGE - 1) / PAGE * PAGE;
        u32 handle, value_len;

        if (secrets_attach(entry->name, address, len, &handle, &value_len) != OK)
                return fail("the device does not attach it");
        print("%s version=%u length=%u mode=%x uid=%u gid=%u value=", entry->name, entry->version,
              (u64)value_len, (u64)entry->mode, (u64)entry->uid, (u64)entry->gid);
        print_hex((const u8 *)address, value_len);
        print("\n");
        if (!is_zero((const u8 *)address + value_len, len - value_len))
                return fail("there is something behind the value");
        if (hold)
                return true;
        if (secrets_detach(handle) != OK)
                return fail("the device does not detach it");
        return is_zero((const u8 *)address, len) || fail("the page was not wiped");
}

static bool read_all(void)
{
        static struct entry entry;
        u32 total, count, at = 0;
        u64 address = POOL;

        if (!device_find() || !device_init())
                return fail("no virtio-secrets device, or it does not start");
        do {
                if (secrets_list(at, &total, &count) != OK)
                        return fail("no list");
                if (at == 0)
                        print("%u secrets\n", (u64)total);
                if (at >= total)
                        break;
                memcpy(&entry, (const void *)list_entry(0), sizeof(entry));
                if (!read_one(&entry, address))
                        return false;
                if (hold)
                        address += (entry.value_len + PAGE - 1) / PAGE * PAGE;
                at++;
        } while (at < total);
        return true;
}

_Noreturn void main(const u8 *boot_params)
{
        char name[16] = "hello";
        char flag[2] = "";
        bool done = true;

        machine_init(boot_params);
        argument("tiny", name, sizeof(name));
        hold = argument("hold", flag, sizeof(flag)) ? flag[0] : 0;
        if (same(name, "spin")) {
                print("spinning\n");
                for (;;)
                        __asm__ volatile("");
        } else if (same(name, "halt")) {
                print("halting\n");
                for (;;)
                        __asm__ volatile("hlt");
        } else if (same(name, "reset")) {
                print("resetting\n");
                reset();
        } else if (same(name, "hello")) {
                print("hello\n");
        } else if (same(name, "touch")) {
                done = touch();
        } else if (same(name, "read")) {
                done = read_all();
                if (done && hold) {
                        print("holding\n");
                        for (;;)
                                if (hold == '2')
                                        __asm__ volatile("hlt");
                }
        } else if (same(name, "forget")) {
                done = forget(hold);
        } else if (same(name, "conformance")) {
                done = conformance();
        } else {
                done = fail("no such scenario");
        }
        if (done)
                print("tiny: done\n");
        power_off();
}
