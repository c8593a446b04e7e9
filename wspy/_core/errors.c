/* errors.c: what each error means: the close code it is answered with, the rule's section, a sentence. */
#include "core.h"

typedef struct {
    int16_t error;
    uint16_t close_code;
    const char *section;
    const char *text;
} entry;

static const entry entries[] = {
    {WSPY_OK, 1000, "", "no error"},
    {WSPY_ERROR_NO_MEMORY, 1011, "", "out of memory"},
    {WSPY_ERROR_SYSTEM, 1006, "", "a system call failed"},
    {WSPY_ERROR_BUSY, 1011, "", "a turn of this loop is already running"},
    {WSPY_ERROR_ARGUMENT, 1011, "", "an argument is out of range"},
    {WSPY_ERROR_CLOSED, 1011, "", "the loop is closed, or belongs to the parent of a fork"},
    {WSPY_ERROR_HANDLE, 1011, "", "no such connection"},
    {WSPY_ERROR_RSV, 1002, "RFC 6455 §5.2", "a reserved bit is set that no extension has claimed"},
    {WSPY_ERROR_OPCODE, 1002, "RFC 6455 §5.2", "the operation code is reserved"},
    {WSPY_ERROR_UNMASKED, 1002, "RFC 6455 §5.1", "a frame from a client is not masked"},
    {WSPY_ERROR_MASKED, 1002, "RFC 6455 §5.1", "a frame from a server is masked"},
    {WSPY_ERROR_LENGTH_FORM, 1002, "RFC 6455 §5.2", "the payload length is not in its shortest form"},
    {WSPY_ERROR_LENGTH_RANGE, 1002, "RFC 6455 §5.2", "the payload length has its most significant bit set"},
    {WSPY_ERROR_CONTROL_LENGTH, 1002, "RFC 6455 §5.5", "a control frame is longer than 125 bytes"},
    {WSPY_ERROR_CONTROL_FRAGMENT, 1002, "RFC 6455 §5.5", "a control frame is fragmented"},
    {WSPY_ERROR_CONTINUATION, 1002, "RFC 6455 §5.4", "a continuation frame without a message to continue"},
    {WSPY_ERROR_INTERLEAVED, 1002, "RFC 6455 §5.4", "a new message inside an unfinished one"},
    {WSPY_ERROR_MESSAGE_SIZE, 1009, "RFC 6455 §10.4", "the message is larger than max_size"},
    {WSPY_ERROR_FRAGMENT_SIZE, 1009, "RFC 6455 §10.4", "a frame is larger than max_size allows for one"},
    {WSPY_ERROR_FRAGMENT_COUNT, 1008, "RFC 6455 §10.4", "the message has more frames than max_fragments"},
    {WSPY_ERROR_UTF8, 1007, "RFC 6455 §8.1", "a text message is not valid UTF-8"},
    {WSPY_ERROR_CLOSE_LENGTH, 1002, "RFC 6455 §5.5.1", "the payload of a Close frame is one byte long"},
    {WSPY_ERROR_CLOSE_CODE, 1002, "RFC 6455 §7.4", "a Close frame carries an invalid code"},
    {WSPY_ERROR_CLOSE_UTF8, 1007, "RFC 6455 §5.5.1", "the reason of a Close frame is not valid UTF-8"},
    {WSPY_ERROR_EXTENSION, 1002, "RFC 6455 §9", "what the peer sent breaks a rule of an extension"},
    {WSPY_ERROR_HEAD_SYNTAX, 1006, "RFC 9112 §2.2", "the request head is malformed"},
    {WSPY_ERROR_HEAD_METHOD, 1006, "RFC 9112 §3.1", "the request method is too long"},
    {WSPY_ERROR_HEAD_LINE, 1006, "RFC 9112 §3", "the request line is longer than max_line"},
    {WSPY_ERROR_HEAD_FIELD, 1006, "RFC 6585 §5", "a header line is longer than max_header_line"},
    {WSPY_ERROR_HEAD_FIELD_COUNT, 1006, "RFC 6585 §5", "the request has more header lines than max_headers"},
    {WSPY_ERROR_HEAD_SIZE, 1006, "RFC 6585 §5", "the request head is larger than max_head"},
    {WSPY_ERROR_HEAD_TIMEOUT, 1006, "RFC 9110 §15.5.9", "the request head was not complete in open_timeout"},
    {WSPY_ERROR_EOF, 1006, "RFC 6455 §7.1.5", "the peer ended the connection without a Close frame"},
    {WSPY_ERROR_RESET, 1006, "RFC 6455 §7.1.5", "the connection was lost"},
    {WSPY_ERROR_OPEN_TIMEOUT, 1006, "", "the opening handshake took longer than open_timeout"},
    {WSPY_ERROR_CLOSE_TIMEOUT, 1006, "RFC 6455 §7.1.1", "the closing handshake took longer than close_timeout"},
    {WSPY_ERROR_PING_TIMEOUT, 1006, "RFC 6455 §5.5.2", "no pong within ping_timeout"},
    {WSPY_ERROR_BACKLOG, 1008, "", "more unsent bytes than max_backlog"},
    {WSPY_ERROR_ABORTED, 1006, "", "aborted by this side"},
    {WSPY_ERROR_WRITE_TIMEOUT, 1006, "", "the peer has taken nothing for write_timeout"},
    {WSPY_ERROR_CONTROL_RATE, 1008, "RFC 6455 §10.4", "more control frames in a second than max_controls"},
};

static const entry *find(int error)
{
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (entries[i].error == error)
            return &entries[i];
    return &entries[2];
}

int wspy_error_close_code(int error)
{
    return find(error)->close_code;
}

const char *wspy_error_section(int error)
{
    return find(error)->section;
}

const char *wspy_error_text(int error)
{
    return find(error)->text;
}
