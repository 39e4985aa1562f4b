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
#define MAX_INSTANCES 8
#define MAX_EVENTS 16
#define MAX_TEXT (512 * 1024)

#define ABSENT (-1)

struct fault {
    const char *function;
    int code;
};

/* Graphics, compute, or compute as a client of MPS. */
enum process_kind { COMPUTE, GRAPHICS, MPS };

struct process {
    unsigned pid;
    unsigned long long memory_mib;
    enum process_kind kind;
    int gi, ci; /* ABSENT: of the whole GPU */
};

/* A MIG instance. Its slices are in its profile: "1g.10gb", "1c.3g.40gb". */
struct instance {
    const char *uuid, *profile;
    int index, gi, ci, memory_mib, used_mib, slices, gi_slices;
};

struct event {
    long long number;
    int data, gi, ci;
    unsigned long long kind; /* NVML's bit */
};

/* NVLinks to another GPU, by its bus id, or to a "switch". */
struct link {
    const char *target;
    int count;
};

struct gpu {
    const char *uuid, *name, *serial, *bus_id, *fault;
    int minor_number, memory_total_mib, memory_reserved_mib, memory_used_mib, utilization_percent;
    int power_limit_watts, fan_percent, compute_mode, mig, mig_pending, mig_slices, ecc, ecc_errors;
    int clocks_event_reasons; /* NVML's bits; ABSENT: idleness alone */
    int recovery_action, fabric, addressing_mode; /* NVML's numbers */
    int retired_pages_pending, remap_pending, remap_failed;
    int compute_capability_major, compute_capability_minor;
    int socket, pcie_switch; /* ABSENT: its place on the bus isn't told */
    struct link links[MAX_GPUS];
    int link_count; /* of entries, each for so many links */
    struct process processes[MAX_PROCESSES];
    int process_count;
    struct instance instances[MAX_INSTANCES];
    int instance_count;
    struct event events[MAX_EVENTS];
    int event_count;
    struct fault faults[MAX_FAULTS];
    int fault_count;
};

struct state {
    const char *driver, *cuda, *fault;
    int loads, slow_milliseconds;
    int privileged; /* whether a GPU in MIG mode tells the use of all its instances */
    int gap_is_invalid; /* what an index without an instance is answered with */
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

/* The place of a word in a list that ends with NULL; ABSENT if it isn't in it. */
static inline int place_of(const char *value, const char *const *words)
{
    for (int i = 0; words[i]; i++)
        if (text_equal(value, words[i]))
            return i;
    return ABSENT;
}

/* NVML numbers what these stand for from 0; "" is a number without a word here. */
static const char *const COMPUTE_MODES[] = {"default", "", "prohibited", "exclusive_process", NULL};
static const char *const RECOVERY_ACTIONS[] = {"none", "gpu_reset", "node_reboot", "drain_p2p",
                                               "drain_and_reset", NULL};
static const char *const FABRIC_STATES[] = {"", "not_started", "in_progress", "completed", "failed",
                                            NULL};
static const char *const ADDRESSING_MODES[] = {"none", "hmm", "ats", NULL};
/* The bits of kinds of events, from the lowest. */
static const char *const EVENT_KINDS[] = {"single_bit_ecc", "double_bit_ecc", "", "xid", "", "", "",
                                          "", "mig_config", "", "", "", "", "", "",
                                          "recovery_action", NULL};

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

static inline void add_process(struct gpu *gpu, char *value, enum process_kind kind,
                               const struct instance *instance)
{
    struct process *process = &gpu->processes[gpu->process_count];
    if (gpu->process_count == MAX_PROCESSES)
        return;
    process->memory_mib = (unsigned long long)number(split(value, ' '));
    process->pid = (unsigned)number(value);
    process->kind = kind;
    process->gi = instance ? instance->gi : ABSENT;
    process->ci = instance ? instance->ci : ABSENT;
    gpu->process_count++;
}

/* The next word of a line, which is cut off after it. */
static inline char *next_word(char **rest)
{
    char *word = *rest;
    *rest = split(word, ' ');
    return word;
}

/* INDEX GI CI TOTAL USED UUID PROFILE */
static inline void add_instance(struct gpu *gpu, char *value)
{
    struct instance *instance = &gpu->instances[gpu->instance_count];
    if (gpu->instance_count == MAX_INSTANCES)
        return;
    instance->index = (int)number(next_word(&value));
    instance->gi = (int)number(next_word(&value));
    instance->ci = (int)number(next_word(&value));
    instance->memory_mib = (int)number(next_word(&value));
    instance->used_mib = (int)number(next_word(&value));
    instance->uuid = next_word(&value);
    instance->profile = value;
    instance->slices = instance->gi_slices = (int)number(value);
    if (*value && value[1] == 'c' && value[2] == '.')
        instance->gi_slices = (int)number(value + 3);
    gpu->instance_count++;
}

/* INDEX PID MIB */
static inline void add_instance_process(struct gpu *gpu, char *value)
{
    int index = (int)number(next_word(&value));
    for (int i = 0; i < gpu->instance_count; i++)
        if (gpu->instances[i].index == index)
            add_process(gpu, value, COMPUTE, &gpu->instances[i]);
}

/* NUMBER KIND DATA GI CI */
static inline void add_event(struct gpu *gpu, char *value)
{
    struct event *event = &gpu->events[gpu->event_count];
    int bit;
    if (gpu->event_count == MAX_EVENTS)
        return;
    event->number = number(next_word(&value));
    bit = place_of(next_word(&value), EVENT_KINDS);
    if (bit == ABSENT)
        return;
    event->kind = 1ULL << bit;
    event->data = (int)number(next_word(&value));
    event->gi = (int)number(next_word(&value));
    event->ci = (int)number(next_word(&value));
    gpu->event_count++;
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
    else if (text_equal(key, "privileged"))
        state->privileged = (int)number(value);
    else if (text_equal(key, "mig_gap"))
        state->gap_is_invalid = text_equal(value, "invalid_argument");
    else if (text_equal(key, "function_fault"))
        add_fault(state->faults, &state->fault_count, value);
}

static inline void read_gpu_line(struct gpu *gpu, const char *key, char *value)
{
#define TEXT(field) if (text_equal(key, #field)) gpu->field = present(value)
#define NUMBER(field) if (text_equal(key, #field)) gpu->field = (int)number(value)
#define WORD(field, words) if (text_equal(key, #field)) gpu->field = place_of(value, words)
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
    else NUMBER(mig_pending);
    else NUMBER(mig_slices);
    else NUMBER(clocks_event_reasons);
    else NUMBER(ecc);
    else NUMBER(ecc_errors);
    else NUMBER(retired_pages_pending);
    else NUMBER(remap_pending);
    else NUMBER(remap_failed);
    else WORD(compute_mode, COMPUTE_MODES);
    else WORD(recovery_action, RECOVERY_ACTIONS);
    else WORD(fabric, FABRIC_STATES);
    else WORD(addressing_mode, ADDRESSING_MODES);
    else if (text_equal(key, "compute_capability")) {
        gpu->compute_capability_minor = (int)number(split(value, '.'));
        gpu->compute_capability_major = (int)number(value);
    } else if (text_equal(key, "pcie")) {
        gpu->pcie_switch = (int)number(split(value, '.'));
        gpu->socket = (int)number(value);
    } else if (text_equal(key, "nvlink"))
        add_links(gpu, value);
    else if (text_equal(key, "process"))
        add_process(gpu, value, COMPUTE, NULL);
    else if (text_equal(key, "graphics_process"))
        add_process(gpu, value, GRAPHICS, NULL);
    else if (text_equal(key, "mps_process"))
        add_process(gpu, value, MPS, NULL);
    else if (text_equal(key, "instance"))
        add_instance(gpu, value);
    else if (text_equal(key, "instance_process"))
        add_instance_process(gpu, value);
    else if (text_equal(key, "event"))
        add_event(gpu, value);
    else if (text_equal(key, "function_fault"))
        add_fault(gpu->faults, &gpu->fault_count, value);
#undef TEXT
#undef NUMBER
#undef WORD
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

/* Whether a process is of an instance; every one is of the whole GPU, which is NULL. */
static inline int is_of(const struct process *process, const struct instance *instance)
{
    return !instance || (process->gi == instance->gi && process->ci == instance->ci);
}

/* What the processes hold is used memory, whatever memory_used_mib says. */
static inline int memory_of_processes(const struct gpu *gpu, const struct instance *instance)
{
    int sum = 0;
    for (int i = 0; i < gpu->process_count; i++)
        if (is_of(&gpu->processes[i], instance))
            sum += (int)gpu->processes[i].memory_mib;
    return sum;
}

static inline void count_process_memory(struct gpu *gpu)
{
    int sum = memory_of_processes(gpu, NULL), of_instances = 0;
    for (int i = 0; i < gpu->instance_count; i++) {
        struct instance *instance = &gpu->instances[i];
        int used = memory_of_processes(gpu, instance);
        if (instance->used_mib < used)
            instance->used_mib = used;
        of_instances += instance->used_mib;
    }
    if (gpu->memory_used_mib < sum)
        gpu->memory_used_mib = sum;
    if (gpu->memory_used_mib < of_instances)
        gpu->memory_used_mib = of_instances;
}

static inline int mig_pending(const struct gpu *gpu)
{
    return gpu->mig_pending == ABSENT ? gpu->mig : gpu->mig_pending;
}

/* How many instances a GPU in MIG mode can have, by its slices; 0 outside of it. */
static inline int most_instances(const struct gpu *gpu)
{
    return gpu->mig != 1 ? 0 : gpu->mig_slices;
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
    state->privileged = 1;
    for (line = state->text; *line; line = next) {
        next = split(line, '\n');
        value = split(line, ' ');
        if (text_equal(line, "gpu")) {
            if (state->gpu_count == MAX_GPUS)
                break;
            gpu = &state->gpus[state->gpu_count++];
            gpu->uuid = value;
            gpu->socket = gpu->pcie_switch = gpu->mig_pending = gpu->clocks_event_reasons = ABSENT;
            gpu->recovery_action = gpu->fabric = gpu->addressing_mode = ABSENT;
            gpu->mig_slices = 7;
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
