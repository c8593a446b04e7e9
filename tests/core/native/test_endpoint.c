/* test_endpoint.c: where do the masking keys of an endpoint come from, and what if none can be had? The source of them
 * is replaced, so that each key is known. */
#include "native.h"

#include "endpoint.c"

enum { POOL = sizeof((wspy_endpoint *)0)->keys, KEYS = POOL / 4 };

static uint32_t drawn; /* bytes */
static uint32_t asked; /* how often */
static int source_fails;

int wspy_sys_random(void *output, size_t length)
{
    asked++;
    if (source_fails)
        return -1;
    for (size_t i = 0; i < length; i++)
        ((uint8_t *)output)[i] = (uint8_t)(1 + drawn++ % 255);
    return 0;
}

void *wspy_sys_allocate_zeroed(size_t count, size_t size)
{
    return calloc(count, size);
}

void *wspy_sys_resize(void *memory, size_t size)
{
    return realloc(memory, size);
}

void wspy_sys_free(void *memory)
{
    free(memory);
}

static wspy_endpoint *begin(int role)
{
    drawn = asked = 0;
    source_fails = 0;
    wspy_limits limits = {UINT64_MAX, UINT64_MAX, UINT32_MAX};
    wspy_endpoint *endpoint = wspy_endpoint_new(role, WSPY_FRAMES, &limits, 0, 0);
    CHECK(endpoint);
    return endpoint;
}

static wspy_sending sending;

/* Sends an empty frame. Returns its size; its key is left in *key. */
static int64_t send_empty(wspy_endpoint *endpoint, int first, int how, uint32_t *key)
{
    uint8_t output[WSPY_HEADER_MAX];
    int64_t size = wspy_endpoint_send(endpoint, &sending, first, how, (const uint8_t *)"keys", NULL, 0, output);
    if (size == 6)
        memcpy(key, output + 2, 4);
    return size;
}

TEST(each_key_comes_from_the_source_and_is_used_once)
{
    wspy_endpoint *endpoint = begin(WSPY_CLIENT);
    enum { COUNT = 3 * KEYS };
    uint32_t keys[COUNT];
    for (int i = 0; i < COUNT; i++) {
        CHECK(send_empty(endpoint, WSPY_FIN | WSPY_EVENT_BINARY, WSPY_SEND_MASKED, &keys[i]) == 6);
        CHECK(asked == (uint32_t)i / KEYS + 1);
        uint8_t first = (uint8_t)keys[i];
        uint8_t bytes[4] = {first, (uint8_t)(first % 255 + 1), (uint8_t)((first + 1) % 255 + 1),
                            (uint8_t)((first + 2) % 255 + 1)};
        CHECK(memcmp(&keys[i], bytes, 4) == 0); /* four neighbours of the source */
        for (int k = i / KEYS * KEYS; k < i; k++)
            CHECK(keys[k] != keys[i]);
    }
    wspy_endpoint_free(endpoint);
}

TEST(a_key_that_was_used_is_not_kept)
{
    wspy_endpoint *endpoint = begin(WSPY_CLIENT);
    uint32_t key;
    for (size_t used = 1; used <= KEYS; used++) {
        send_empty(endpoint, WSPY_FIN | WSPY_EVENT_BINARY, WSPY_SEND_MASKED, &key);
        for (size_t i = 0; i < POOL; i++)
            CHECK((endpoint->keys[i] == 0) == (i >= POOL - 4 * used));
    }
    wspy_endpoint_free(endpoint);
}

TEST(keys_from_before_a_fork_are_not_used_after_it)
{
    wspy_endpoint *endpoint = begin(WSPY_CLIENT);
    uint32_t key;
    for (int fork = 0; fork < 3; fork++) {
        CHECK(send_empty(endpoint, WSPY_FIN | WSPY_EVENT_BINARY, WSPY_SEND_MASKED, &key) == 6);
        CHECK(asked == (uint32_t)fork + 1);
        wspy_endpoint_forked();
    }
    wspy_endpoint_free(endpoint);
}

TEST(nothing_is_drawn_for_what_is_not_masked_or_has_a_key)
{
    wspy_endpoint *server = begin(WSPY_SERVER);
    uint32_t key;
    CHECK(send_empty(server, WSPY_FIN | WSPY_EVENT_BINARY, 0, &key) == 2);
    wspy_endpoint_free(server);
    wspy_endpoint *client = begin(WSPY_CLIENT);
    CHECK(send_empty(client, WSPY_FIN | WSPY_EVENT_BINARY, WSPY_SEND_MASKED | WSPY_SEND_KEY, &key) == 6);
    CHECK(memcmp(&key, "keys", 4) == 0 && asked == 0);
    wspy_endpoint_free(client);
}

TEST(without_a_key_nothing_is_sent_and_the_next_one_is)
{
    wspy_endpoint *endpoint = begin(WSPY_CLIENT);
    uint32_t key;
    sending = (wspy_sending){0};
    source_fails = 1;
    for (int i = 0; i < 3; i++) {
        CHECK(send_empty(endpoint, WSPY_EVENT_TEXT, WSPY_SEND_MASKED, &key) == WSPY_ERROR_SYSTEM);
        CHECK(send_empty(endpoint, WSPY_EVENT_TEXT, WSPY_SEND_MASKED | WSPY_SEND_UNCHECKED, &key) ==
              WSPY_ERROR_SYSTEM);
        CHECK(send_empty(endpoint, WSPY_FIN | WSPY_EVENT_CLOSE, WSPY_SEND_MASKED, &key) == WSPY_ERROR_SYSTEM);
    }
    CHECK(sending.state == 0 && sending.closed == 0 && wspy_endpoint_close_state(endpoint) == 0);
    source_fails = 0;
    CHECK(send_empty(endpoint, WSPY_EVENT_TEXT, WSPY_SEND_MASKED, &key) == 6);
    CHECK(send_empty(endpoint, WSPY_FIN | WSPY_EVENT_CONTINUATION, WSPY_SEND_MASKED, &key) == 6);
    wspy_endpoint_free(endpoint);
}
