/* memory.c: how much memory do the connections of a loop take, and what for?
 *
 * Nothing is counted while they work: whoever asks has all of them looked at. */
#include "loop.h"
#include "sys.h"

static uint64_t input_memory(const wspy_input *input)
{
    return input ? wspy_sys_resident(input, sizeof *input + input->end) : 0;
}

static void add_connection(const connection *conn, wspy_memory *memory)
{
    uint64_t *kind = conn->phase == HEAD ? &memory->heads : &memory->remainders;
    *kind += input_memory(conn->input);
    if (conn->flags & UPGRADED)
        memory->remainders += wspy_sys_resident(conn->protocol.message, (size_t)conn->protocol.length);
    memory->queues += wspy_queue_memory(conn->queue);
    wspy_raw_memory(conn->raw, memory);
}

int wspy_loop_memory(wspy_loop *loop, wspy_memory *memory)
{
    pthread_mutex_lock(&loop->mutex);
    *memory =
        (wspy_memory){.records = (uint64_t)loop->slot_count * (sizeof(connection) + sizeof *loop->backlogs)};
    for (uint32_t slot = 0; slot < loop->slot_count; slot++) {
        const connection *conn = wspy_loop_slot(loop, slot);
        if (conn->phase != FREE)
            add_connection(conn, memory);
    }
    pthread_mutex_unlock(&loop->mutex);
    return WSPY_OK;
}
