/*
 * The simulated NVML, of events: a program waits for them, and another changes the state. Who waits
 * looks at it several times a second; of what happened before a GPU was registered nothing is told.
 * ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlEvents.html
 */
#include "nvml_call.h"

#include <time.h>

#define MAX_SETS 16
#define NO_INSTANCE 0xFFFFFFFFu
#define LOOK_EVERY_MILLISECONDS 100
/* Xids, memory errors, MIG's changes and the repair that is needed. */
#define SUPPORTED 0x810BULL

struct registration {
    nvmlDevice_t device;
    unsigned long long kinds;
    long long seen; /* the number of the last event that was told, or was before */
};

struct nvmlEventSet_st {
    int used, count;
    struct registration registrations[MAX_GPUS];
};

static struct nvmlEventSet_st sets[MAX_SETS];
static char sets_locked;

static void lock_sets(void)
{
    while (__atomic_test_and_set(&sets_locked, __ATOMIC_ACQUIRE))
        ;
}

static void unlock_sets(void)
{
    __atomic_clear(&sets_locked, __ATOMIC_RELEASE);
}

static int is_set(nvmlEventSet_t set)
{
    for (int i = 0; i < MAX_SETS; i++)
        if (set == &sets[i])
            return sets[i].used;
    return 0;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    ENTER();
    NEED(set);
    lock_sets();
    *set = NULL;
    for (int i = 0; i < MAX_SETS && !*set; i++)
        if (!sets[i].used) {
            *set = &sets[i];
            sets[i].used = 1;
            sets[i].count = 0;
        }
    unlock_sets();
    return *set ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    ENTER();
    NEED(is_set(set));
    set->used = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *eventTypes)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(eventTypes);
    *eventTypes = SUPPORTED;
    return NVML_SUCCESS;
}

static long long last_event(const struct gpu *gpu)
{
    return gpu->event_count ? gpu->events[gpu->event_count - 1].number : 0;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long eventTypes,
                                      nvmlEventSet_t set)
{
    ENTER_GPU(ABOUT_IDENTITY);
    nvmlReturn_t code = NVML_SUCCESS;
    NEED(is_set(set) && eventTypes);
    if (eventTypes & ~SUPPORTED)
        return NVML_ERROR_NOT_SUPPORTED;
    lock_sets();
    if (set->count == MAX_GPUS)
        code = NVML_ERROR_UNKNOWN;
    else
        set->registrations[set->count++] =
            (struct registration){device, eventTypes, last_event(gpu)};
    unlock_sets();
    return code;
}

static void tell(nvmlEventData_t *data, nvmlDevice_t device, const struct event *event)
{
    data->device = device;
    data->eventType = event->kind;
    data->eventData = (unsigned long long)event->data;
    data->gpuInstanceId = event->gi == ABSENT ? NO_INSTANCE : (unsigned int)event->gi;
    data->computeInstanceId = event->ci == ABSENT ? NO_INSTANCE : (unsigned int)event->ci;
}

/* The next event of one GPU that wasn't told yet: SUCCESS, or TIMEOUT if there is none. */
static nvmlReturn_t next_event(const struct state *state, struct registration *registration,
                               nvmlEventData_t *data)
{
    for (int i = 0; i < state->gpu_count; i++) {
        const struct gpu *gpu = &state->gpus[i];
        if (!text_equal(gpu->uuid, (const char *)registration->device))
            continue;
        for (int j = 0; j < gpu->event_count; j++) {
            const struct event *event = &gpu->events[j];
            /* Without privileges, only what is of the whole GPU. */
            int is_told = event->gi == ABSENT || state->privileged;
            if (event->number <= registration->seen)
                continue;
            registration->seen = event->number;
            if (!(event->kind & registration->kinds) || !is_told)
                continue;
            tell(data, registration->device, event);
            return NVML_SUCCESS;
        }
        if (gpu->fault && text_equal(gpu->fault, "lost"))
            return NVML_ERROR_GPU_IS_LOST;
    }
    return NVML_ERROR_TIMEOUT;
}

static nvmlReturn_t look(const char *function, nvmlEventSet_t set, nvmlEventData_t *data)
{
    __attribute__((cleanup(close_state))) struct state *state = NULL;
    nvmlReturn_t code = NVML_ERROR_TIMEOUT;
    RETURN_IF_FAILED(enter(function, &state));
    NEED(is_set(set) && data);
    for (int i = 0; i < set->count && code == NVML_ERROR_TIMEOUT; i++)
        code = next_event(state, &set->registrations[i], data);
    return code;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms)
{
    for (;;) {
        nvmlReturn_t code = look("nvmlEventSetWait_v2", set, data);
        unsigned int pause = timeoutms < LOOK_EVERY_MILLISECONDS ? timeoutms : LOOK_EVERY_MILLISECONDS;
        struct timespec time = {0, pause * 1000000L};
        if (code != NVML_ERROR_TIMEOUT || !pause)
            return code;
        nanosleep(&time, NULL);
        timeoutms -= pause;
    }
}

nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms)
{
    return nvmlEventSetWait_v2(set, data, timeoutms);
}
