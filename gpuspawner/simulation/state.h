/*
 * The simulated host's state file, read afresh at every call.
 *
 * One `key value` per line; state.py writes it and replaces it by rename, so a reader sees the old
 * file or the new one, never half of one. Lines before the first `gpu` tell of the host, lines after
 * a `gpu UUID` of that GPU. `-` stands for "this GPU has no such thing". An unknown key is skipped, so
 * that a library built yesterday reads today's file.
 *
 * Nothing here needs more of a C library than open, read, close, getenv, malloc and free: the library
 * built from it is loaded beside whatever C library a container has.
 */
#ifndef GPUSPAWNER_STATE_H
#define GPUSPAWNER_STATE_H

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define STATE_PATH_VARIABLE "GPUSPAWNER_SIMULATED_STATE"
#define STATE_PATH "/run/gpuspawner/state"

/* state.py refuses what doesn't fit. */
#define MAX_GPUS 64
#define MAX_PROCESSES 64
#define MAX_FAULTS 16
#define MAX_TEXT (512 * 1024)

#define ABSENT (-1)

struct fault {
    const char *function;
    int code;
};

struct process {
    unsigned pid;
    unsigned long long memory_mib;
    int graphics;
};

/* NVLinks to another GPU, by its bus id, or to a "switch". */
struct link {
    const char *target;
    int count;
};

struct gpu {
    const char *uuid, *name, *serial, *bus_id, *fault;
    int minor_number, memory_total_mib, memory_reserved_mib, memory_used_mib, utilization_percent;
    int power_limit_watts, fan_percent, compute_mode, mig, ecc, ecc_errors;
    int retired_pages_pending, remap_pending, remap_failed;
    int compute_capability_major, compute_capability_minor;
    int socket, pcie_switch; /* ABSENT: its place on the bus isn't told */
    struct link links[MAX_GPUS];
    int link_count; /* of entries, each for so many links */
    struct process processes[MAX_PROCESSES];
    int process_count;
    struct fault faults[MAX_FAULTS];
    int fault_count;
};

struct state {
    const char *driver, *cuda, *fault;
    int loads, slow_milliseconds;
    struct fault faults[MAX_FAULTS];
    int fault_count;
    struct gpu gpus[MAX_GPUS];
    int gpu_count;
    char text[MAX_TEXT + 1];
};

static inline int text_equal(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

static inline int text_equal_ignoring_case(const char *a, const char *b)
{
    for (;; a++, b++) {
        int x = *a >= 'A' && *a <= 'Z' ? *a + 32 : *a;
        int y = *b >= 'A' && *b <= 'Z' ? *b + 32 : *b;
        if (x != y)
            return 0;
        if (!x)
            return 1;
    }
}

/* The number at the start of a text, ABSENT if there is none (as for `-`). */
static inline long long number(const char *text)
{
    long long value = 0;
    if (*text < '0' || *text > '9')
        return ABSENT;
    for (; *text >= '0' && *text <= '9' && value < 1000000000000LL; text++)
        value = value * 10 + (*text - '0');
    return value;
}

/* What follows the first `separator`, which is replaced by an end of text; "" if there is none. */
static inline char *split(char *text, char separator)
{
    for (; *text; text++)
        if (*text == separator) {
            *text = 0;
            return text + 1;
        }
    return text;
}

static inline const char *present(const char *value)
{
    return text_equal(value, "-") ? NULL : value;
}

static inline int compute_mode_number(const char *value)
{
    if (text_equal(value, "exclusive_process"))
        return 3;
    if (text_equal(value, "prohibited"))
        return 2;
    return 0;
}

static inline void add_fault(struct fault *faults, int *count, char *value)
{
    if (*count == MAX_FAULTS)
        return;
    faults[*count].code = (int)number(split(value, ' '));
    faults[*count].function = value;
    ++*count;
}

static inline void add_links(struct gpu *gpu, char *value)
{
    if (gpu->link_count == MAX_GPUS)
        return;
    gpu->links[gpu->link_count].count = (int)number(split(value, ' '));
    gpu->links[gpu->link_count++].target = value;
}

static inline void add_process(struct gpu *gpu, char *value, int graphics)
{
    struct process *process = &gpu->processes[gpu->process_count];
    if (gpu->process_count == MAX_PROCESSES)
        return;
    process->memory_mib = (unsigned long long)number(split(value, ' '));
    process->pid = (unsigned)number(value);
    process->graphics = graphics;
    gpu->process_count++;
}

static inline void read_host_line(struct state *state, const char *key, char *value)
{
    if (text_equal(key, "driver"))
        state->driver = value;
    else if (text_equal(key, "cuda"))
        state->cuda = value;
    else if (text_equal(key, "fault"))
        state->fault = present(value);
    else if (text_equal(key, "loads"))
        state->loads = (int)number(value);
    else if (text_equal(key, "slow_milliseconds"))
        state->slow_milliseconds = (int)number(value);
    else if (text_equal(key, "function_fault"))
        add_fault(state->faults, &state->fault_count, value);
}

static inline void read_gpu_line(struct gpu *gpu, const char *key, char *value)
{
#define TEXT(field) if (text_equal(key, #field)) gpu->field = present(value)
#define NUMBER(field) if (text_equal(key, #field)) gpu->field = (int)number(value)
    TEXT(name);
    else TEXT(serial);
    else TEXT(bus_id);
    else TEXT(fault);
    else NUMBER(minor_number);
    else NUMBER(memory_total_mib);
    else NUMBER(memory_reserved_mib);
    else NUMBER(memory_used_mib);
    else NUMBER(utilization_percent);
    else NUMBER(power_limit_watts);
    else NUMBER(fan_percent);
    else NUMBER(mig);
    else NUMBER(ecc);
    else NUMBER(ecc_errors);
    else NUMBER(retired_pages_pending);
    else NUMBER(remap_pending);
    else NUMBER(remap_failed);
    else if (text_equal(key, "compute_mode"))
        gpu->compute_mode = compute_mode_number(value);
    else if (text_equal(key, "compute_capability")) {
        gpu->compute_capability_minor = (int)number(split(value, '.'));
        gpu->compute_capability_major = (int)number(value);
    } else if (text_equal(key, "pcie")) {
        gpu->pcie_switch = (int)number(split(value, '.'));
        gpu->socket = (int)number(value);
    } else if (text_equal(key, "nvlink"))
        add_links(gpu, value);
    else if (text_equal(key, "process"))
        add_process(gpu, value, 0);
    else if (text_equal(key, "graphics_process"))
        add_process(gpu, value, 1);
    else if (text_equal(key, "function_fault"))
        add_fault(gpu->faults, &gpu->fault_count, value);
#undef TEXT
#undef NUMBER
}

/* How far two GPUs are from each other on the bus, in NVML's levels; ABSENT if it isn't told. */
static inline int distance(const struct gpu *a, const struct gpu *b)
{
    if (a == b)
        return 0;
    if (a->socket == ABSENT || b->socket == ABSENT)
        return ABSENT;
    if (a->socket != b->socket)
        return 50;
    return a->pcie_switch == b->pcie_switch ? 10 : 40;
}

/* The number of NVLinks from one GPU to another, or by way of switches. */
static inline int links_between(const struct gpu *a, const struct gpu *b)
{
    int direct = 0, ours = 0, theirs = 0;
    for (int i = 0; i < a->link_count; i++) {
        if (text_equal(a->links[i].target, "switch"))
            ours += a->links[i].count;
        else if (b->bus_id && text_equal(a->links[i].target, b->bus_id))
            direct += a->links[i].count;
    }
    for (int i = 0; i < b->link_count; i++)
        if (text_equal(b->links[i].target, "switch"))
            theirs += b->links[i].count;
    return direct + (ours < theirs ? ours : theirs);
}

/* Power and heat follow the work, which is enough to look at. */
static inline int temperature_celsius(const struct gpu *gpu)
{
    return 31 + (gpu->utilization_percent > 0 ? gpu->utilization_percent * 42 / 100 : 0);
}

static inline int power_milliwatts(const struct gpu *gpu)
{
    int busy_percent = gpu->utilization_percent > 0 ? gpu->utilization_percent : 0;
    if (gpu->power_limit_watts == ABSENT)
        return ABSENT;
    return gpu->power_limit_watts * 10 * (13 + busy_percent * 80 / 100);
}

/* What the processes hold is used memory, whatever memory_used_mib says. */
static inline void count_process_memory(struct gpu *gpu)
{
    int sum = 0;
    for (int i = 0; i < gpu->process_count; i++)
        sum += (int)gpu->processes[i].memory_mib;
    if (gpu->memory_used_mib < sum)
        gpu->memory_used_mib = sum;
}

static inline int read_text(struct state *state)
{
    const char *path = getenv(STATE_PATH_VARIABLE);
    ssize_t got;
    int length = 0;
    int file = open(path && *path ? path : STATE_PATH, O_RDONLY);
    if (file < 0)
        return 0;
    while ((got = read(file, state->text + length, (size_t)(MAX_TEXT - length))) > 0)
        length += (int)got;
    close(file);
    state->text[length] = 0;
    return got == 0;
}

/* The state now, to be given to `free`; NULL if there is none to be read: a host without driver. */
static inline struct state *read_state(void)
{
    struct state *state = calloc(1, sizeof *state);
    struct gpu *gpu = NULL;
    char *line, *next, *value;
    if (!state)
        return NULL;
    if (!read_text(state)) {
        free(state);
        return NULL;
    }
    state->driver = state->cuda = "";
    for (line = state->text; *line; line = next) {
        next = split(line, '\n');
        value = split(line, ' ');
        if (text_equal(line, "gpu")) {
            if (state->gpu_count == MAX_GPUS)
                break;
            gpu = &state->gpus[state->gpu_count++];
            gpu->uuid = value;
            gpu->socket = gpu->pcie_switch = ABSENT;
        } else if (gpu) {
            read_gpu_line(gpu, line, value);
        } else {
            read_host_line(state, line, value);
        }
    }
    for (int i = 0; i < state->gpu_count; i++)
        count_process_memory(&state->gpus[i]);
    return state;
}

#endif
