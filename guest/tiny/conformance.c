/* What a hostile driver may try, and what resources/virtio-secrets.md says comes of it. Needs two secrets or
 * more, one of them longer than a page. Prints a line "ok NAME: OUTCOME" or "FAILED NAME: wanted .., got .." a check. */
#include "tiny.h"

/* Where no RAM is: a slot of a device, and the last page of the address space. */
#define DEVICE_MEMORY 0xd0000000ul
#define LAST_PAGE (0ul - PAGE)

static u8 pool[8 * PAGE] __attribute__((aligned(PAGE)));
static char first[NAME_LEN], big[NAME_LEN]; /* names of secrets */
static u32 checks, failures;

static const char *outcome_name(enum outcome outcome)
{
        static const char *const statuses[] = { "OK",      "NOENT",  "DENIED",      "REVOKED",
                                                "FROZEN", "TOOBIG", "UNAVAILABLE", "INVALID" };

        if ((u32)outcome < sizeof(statuses) / sizeof(statuses[0]))
                return statuses[outcome];
        switch (outcome) {
        case EMPTY:
                return "EMPTY";
        case NEEDS_RESET:
                return "NEEDS_RESET";
        case SILENT:
                return "SILENT";
        default:
                return "an unknown status";
        }
}

static void check(const char *name, enum outcome wanted, enum outcome got)
{
        checks++;
        if (got == wanted) {
                print("ok %s: %s\n", name, outcome_name(got));
                return;
        }
        failures++;
        print("FAILED %s: wanted %s, got %s\n", name, outcome_name(wanted), outcome_name(got));
        /* The next check begins with a device that works. */
        if (got == NEEDS_RESET || got == SILENT)
                device_init();
}

static void check_true(const char *name, bool holds)
{
        checks++;
        failures += !holds;
        print("%s %s\n", holds ? "ok" : "FAILED", name);
}

static bool filled_with(const volatile u8 *bytes, u64 len, u8 byte)
{
        while (len--)
                if (*bytes++ != byte)
                        return false;
        return true;
}

/* A list request, not sent: the positive control of each chain below is that it would be answered. */
static void list_request(void)
{
        request_begin(LIST);
        request_u32(0);
        request_u32(0);
        table[0] = (struct descriptor){ (u64)request, 16, DESC_NEXT, 1 };
        table[1] = (struct descriptor){ (u64)&response, PAGE, DESC_WRITE, 0 };
        response.status = SILENT;
}

static enum outcome send_chain(u16 head)
{
        u32 len;

        device_offer(head);
        return device_wait(&len);
}

/* Sends a list request after `change` of one descriptor. */
static void chain(const char *name, enum outcome wanted, u16 index, struct descriptor change)
{
        list_request();
        table[index] = change;
        check(name, wanted, send_chain(0));
}

static void chains(void)
{
        u64 in = (u64)request, out = (u64)&response;
        u32 len = 0;

        list_request();
        check("a list request", OK, send_chain(0));
        chain("a chain that loops over two descriptors", EMPTY, 1,
              (struct descriptor){ in, 16, DESC_NEXT, 0 });
        chain("a descriptor that follows itself", EMPTY, 0, (struct descriptor){ in, 16, DESC_NEXT, 0 });
        chain("a writable descriptor that follows itself", EMPTY, 1,
              (struct descriptor){ out, 16, DESC_NEXT | DESC_WRITE, 1 });
        chain("a next index outside the table", EMPTY, 0,
              (struct descriptor){ in, 16, DESC_NEXT, QUEUE_SIZE });
        chain("the largest next index", EMPTY, 0, (struct descriptor){ in, 16, DESC_NEXT, 0xffff });
        chain("an indirect table", EMPTY, 0, (struct descriptor){ (u64)table, 32, DESC_INDIRECT, 0 });
        chain("an indirect table and more", EMPTY, 0,
              (struct descriptor){ (u64)table, 32, DESC_INDIRECT | DESC_NEXT, 1 });
        chain("a readable address in a device", EMPTY, 0,
              (struct descriptor){ DEVICE_MEMORY, 16, DESC_NEXT, 1 });
        chain("a writable address in a device", EMPTY, 1,
              (struct descriptor){ DEVICE_MEMORY, PAGE, DESC_WRITE, 0 });
        chain("an address behind RAM", EMPTY, 0, (struct descriptor){ ram_end(), 16, DESC_NEXT, 1 });
        chain("a buffer that leaves RAM", EMPTY, 1,
              (struct descriptor){ ram_end() - 16, 17, DESC_WRITE, 0 });
        chain("a length of 4 GiB less one", EMPTY, 0,
              (struct descriptor){ in, 0xffffffff, DESC_NEXT, 1 });
        chain("a writable length of 4 GiB less one", EMPTY, 1,
              (struct descriptor){ out, 0xffffffff, DESC_WRITE, 0 });
        chain("a buffer that wraps around", EMPTY, 1,
              (struct descriptor){ LAST_PAGE, 2 * PAGE, DESC_WRITE, 0 });
        chain("a readable descriptor of no length", EMPTY, 0, (struct descriptor){ in, 0, DESC_NEXT, 1 });
        chain("a writable descriptor of no length", EMPTY, 1, (struct descriptor){ out, 0, DESC_WRITE, 0 });
        chain("no writable descriptor", EMPTY, 0, (struct descriptor){ in, 16, 0, 0 });
        chain("a response of 15 bytes", EMPTY, 1, (struct descriptor){ out, 15, DESC_WRITE, 0 });
        check_true("nothing is written to a short response", response.status == SILENT);

        list_request();
        table[0] = (struct descriptor){ out, PAGE, DESC_WRITE | DESC_NEXT, 1 };
        table[1] = (struct descriptor){ in, 16, 0, 0 };
        check("a readable descriptor behind a writable one", EMPTY, send_chain(0));

        /* 14 descriptors of a byte, one of the rest, one to write. */
        list_request();
        for (u16 i = 0; i < QUEUE_SIZE - 2; i++)
                table[i] = (struct descriptor){ in + i, 1, DESC_NEXT, (u16)(i + 1) };
        table[QUEUE_SIZE - 2] = (struct descriptor){ in + QUEUE_SIZE - 2, 2, DESC_NEXT, QUEUE_SIZE - 1 };
        table[QUEUE_SIZE - 1] = (struct descriptor){ out, PAGE, DESC_WRITE, 0 };
        check("a request in as many descriptors as the queue has", OK, send_chain(0));

        /* The same bytes twice in a chain are the driver's problem, not the device's. */
        list_request();
        table[1].address = in;
        device_offer(0);
        device_wait(&len);
        check_true("a response over the request comes", len != 0);
}

static void raw_request(const char *name, enum outcome wanted, u16 type, u32 reserved, u32 body_words, u32 response_len)
{
        request_begin(type);
        memcpy(request + 4, &reserved, sizeof(reserved));
        while (body_words--)
                request_u32(0);
        check(name, wanted, request_send(response_len));
}

static void named_request(const char *check_name, enum outcome wanted, u16 type, const char *name)
{
        request_begin(type);
        request_name(name);
        if (type == ATTACH) {
                request_u32(1);
                request_u32(0);
                request_u64((u64)pool);
                request_u64(PAGE);
        }
        check(check_name, wanted, request_send(PAGE));
}

static void requests(void)
{
        static char long_name[NAME_LEN];
        u32 handle, len;

        raw_request("an unknown type", INVALID, 6, 0, 2, PAGE);
        raw_request("type 0", INVALID, 0, 0, 2, PAGE);
        raw_request("a reserved field that is not zero", INVALID, LIST, 1, 2, PAGE);
        raw_request("a request without its body", INVALID, LIST, 0, 0, PAGE);
        raw_request("half of a body", INVALID, LIST, 0, 1, PAGE);
        raw_request("bytes left over", INVALID, LIST, 0, 3, PAGE);
        raw_request("a response too small for a list", INVALID, LIST, 0, 2, 16);

        named_request("a secret that there is not, by GET", NOENT, GET, "NO_SUCH_SECRET");
        named_request("a secret that there is not, by ATTACH", NOENT, ATTACH, "NO_SUCH_SECRET");
        named_request("an illegal name", INVALID, GET, "NOT/A/NAME");
        named_request("an empty name", INVALID, GET, "");
        memset(long_name, 'A', sizeof(long_name));
        named_request("a name without an end", INVALID, GET, long_name);
        named_request("a secret by GET", OK, GET, first);
        named_request("a value that the response cannot hold", TOOBIG, GET, big);

        check("a secret attached to one page", OK, secrets_attach(first, (u64)pool, PAGE, &handle, &len));
        check("its handle detached", OK, secrets_detach(handle));
        check("a handle that was detached", NOENT, secrets_detach(handle));
        check("handle 0", NOENT, secrets_detach(0));
        check("the largest handle", NOENT, secrets_detach(0xffffffff));
        check("the epoch acknowledged", OK, secrets_ack(response.epoch));
        check("an epoch that has not come", INVALID, secrets_ack(response.epoch + 1));
        check("the largest epoch", INVALID, secrets_ack(~0ul));
}

/* Attaches `first` to two ranges, or to one if `len2` is 0; a handle that came of it is detached. */
static void ranges_of(const char *name, enum outcome wanted, u64 address1, u64 len1, u64 address2, u64 len2)
{
        enum outcome outcome;

        request_begin(ATTACH);
        request_name(first);
        request_u32(len2 ? 2 : 1);
        request_u32(0);
        request_u64(address1);
        request_u64(len1);
        if (len2) {
                request_u64(address2);
                request_u64(len2);
        }
        outcome = request_send(32);
        check(name, wanted, outcome);
        if (outcome == OK)
                secrets_detach(((volatile u32 *)response.body)[0]);
}

static void range(const char *name, enum outcome wanted, u64 address, u64 len)
{
        ranges_of(name, wanted, address, len, 0, 0);
}

static void range_count(const char *name, u32 count, u32 sent)
{
        request_begin(ATTACH);
        request_name(first);
        request_u32(count);
        request_u32(0);
        /* All the same page: a count that is taken is refused for that, so more than one is never OK. */
        for (u32 i = 0; i < sent; i++) {
                request_u64((u64)pool);
                request_u64(PAGE);
        }
        check(name, INVALID, request_send(32));
}

static void ranges(void)
{
        u64 page = (u64)pool;
        u32 handle, other, len;

        range("a page", OK, page, PAGE);
        ranges_of("two ranges out of order", OK, page + 2 * PAGE, PAGE, page, PAGE);
        range("an address that is not a page's", INVALID, page + 8, PAGE);
        range("a length that is not of pages", INVALID, page, PAGE + 8);
        range("a length under a page", INVALID, page, 8);
        range("no length", INVALID, page, 0);
        range("a device", INVALID, DEVICE_MEMORY, PAGE);
        range("a page behind RAM", INVALID, ram_end(), PAGE);
        range("a range that leaves RAM", INVALID, ram_end() - PAGE, 2 * PAGE);
        range("all of the address space", INVALID, 0, LAST_PAGE);
        range("a range that wraps around", INVALID, LAST_PAGE, 2 * PAGE);
        range("a range that ends with the address space", INVALID, LAST_PAGE, PAGE);
        range("the descriptor table", INVALID, (u64)table, PAGE);
        range("the available ring", INVALID, (u64)&available, PAGE);
        range("the used ring", INVALID, (u64)&used, PAGE);
        range("the request itself", INVALID, (u64)request, PAGE);
        range("the response", INVALID, (u64)&response, PAGE);
        ranges_of("the same page twice", INVALID, page, PAGE, page, PAGE);
        ranges_of("ranges that overlap in a page", INVALID, page, 2 * PAGE, page + PAGE, 2 * PAGE);
        ranges_of("one good range and one bad", INVALID, page, PAGE, DEVICE_MEMORY, PAGE);
        range_count("no ranges", 0, 0);
        range_count("fewer ranges than it says", 2, 1);
        range_count("more ranges than it says", 1, 2);
        range_count("257 ranges", 257, 257);
        range_count("4 thousand million ranges", 0xffffffff, 1);

        check("a first handle", OK, secrets_attach(first, page, PAGE, &handle, &len));
        range("a page of another handle", INVALID, page, PAGE);
        ranges_of("a page of another handle, among others", INVALID, page + PAGE, PAGE, page, PAGE);
        check("a second handle of the same secret", OK, secrets_attach(first, page + PAGE, PAGE, &other, &len));
        check_true("handles are different numbers", handle != other && handle && other);
        check("the first handle detached", OK, secrets_detach(handle));
        check_true("its page is wiped", filled_with(pool, PAGE, 0));
        check_true("the other's page is not", !filled_with(pool + PAGE, PAGE, 0));
        range("the page, which is free again", OK, page, PAGE);
        check("the second handle detached", OK, secrets_detach(other));

        check("ranges too small for the value", TOOBIG, secrets_attach(big, page, PAGE, &handle, &len));
        check_true("the answer has the length, and no handle", handle == 0 && len > PAGE);
        check_true("no part of the value was written", filled_with(pool, sizeof(pool), 0));
}

/* Starts the device with rings at these addresses. */
static void rings_at(const char *name, u64 table_address, u64 available_address, u64 used_address)
{
        enum outcome outcome = NEEDS_RESET;
        u32 len;

        device_reset();
        list_request();
        if (device_start(table_address, available_address, used_address)) {
                device_offer(0);
                outcome = device_wait(&len);
        }
        check(name, NEEDS_RESET, outcome);
        check_true("and works after a reset", device_init());
        list_request();
        check("and answers", OK, send_chain(0));
}

static void queues(void)
{
        u32 len;

        rings_at("a descriptor table outside RAM", DEVICE_MEMORY, (u64)&available, (u64)&used);
        rings_at("an available ring outside RAM", (u64)table, ram_end(), (u64)&used);
        rings_at("a used ring at the end of the address space", (u64)table, (u64)&available, LAST_PAGE);
        rings_at("a used ring that leaves RAM", (u64)table, (u64)&available, ram_end() - 4);

        list_request();
        available.index += QUEUE_SIZE;
        device_offer(0);
        check("an available index that runs ahead", NEEDS_RESET, device_wait(&len));
        list_request();
        check_true("a reset helps", device_init());
        check("and the device answers", OK, send_chain(0));

        list_request();
        check("a head outside the table", NEEDS_RESET, send_chain(QUEUE_SIZE));
        device_init();

        /* Notifications of queues that there are not, and writes to registers that are read-only. */
        device_write(0x50, 2);
        device_write(0x50, 31);
        device_write(0x50, 32);
        device_write(0x50, 0xffffffff);
        device_write(0x00, 0);
        device_write(0x100, 0xffffffff);
        device_write(0xffc, 0xffffffff);
        list_request();
        check("a list request after nonsense in registers", OK, send_chain(0));
}

/* Resets the device while a request is under way: whatever it did, no page may be written after the reset. */
static void races(void)
{
        u64 page = (u64)pool;
        bool clean = true, started = true;
        u32 handle, len;

        for (u32 round = 0; round < 50; round++) {
                request_begin(ATTACH);
                request_name(first);
                request_u32(1);
                request_u32(0);
                request_u64(page);
                request_u64(PAGE);
                table[0] = (struct descriptor){ (u64)request, 160, DESC_NEXT, 1 };
                table[1] = (struct descriptor){ (u64)&response, 32, DESC_WRITE, 0 };
                device_offer(0);
                for (volatile u32 wait = round * 4; wait; wait--)
                        ;
                device_reset();
                memset(pool, 0xaa, PAGE);
                started &= device_start((u64)table, (u64)&available, (u64)&used);
                /* A round trip: whatever the device thread still had to do comes before its answer. */
                list_request();
                started &= send_chain(0) == OK;
                clean &= filled_with(pool, PAGE, 0xaa) && used.index == 1;
        }
        check_true("a device that is reset during requests starts again", started);
        check_true("no page is written after a reset", clean);

        check("a secret attached before a reset", OK, secrets_attach(first, page, PAGE, &handle, &len));
        device_reset();
        check_true("a reset wipes the page", filled_with(pool, PAGE, 0));
        device_start((u64)table, (u64)&available, (u64)&used);
        check("its handle after the reset", NOENT, secrets_detach(handle));
        check("the same page after the reset", OK, secrets_attach(first, page, PAGE, &handle, &len));
        check("and detached", OK, secrets_detach(handle));
}

static bool find_secrets(void)
{
        u32 total, count;

        if (secrets_list(0, &total, &count) != OK)
                return false;
        for (u32 i = 0; i < count; i++) {
                const volatile struct entry *entry = list_entry(i);

                memcpy(entry->value_len > PAGE ? big : first, (const void *)entry->name, NAME_LEN);
        }
        return *first && *big;
}

bool conformance(void)
{
        if (!device_find() || !device_init() || !find_secrets()) {
                print("tiny: FAILED: conformance needs virtio-secrets with a secret of up to a page and one of more\n");
                return false;
        }
        chains();
        requests();
        ranges();
        queues();
        races();
        print("tiny: %u checks, %u failed\n", (u64)checks, (u64)failures);
        if (failures)
                print("tiny: FAILED\n");
        return failures == 0;
}
