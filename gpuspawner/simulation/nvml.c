/*
 * A libnvidia-ml.so.1 for machines without an NVIDIA GPU: NVML's binary interface over a state file.
 *
 * A function that is not here is one this "driver" is too old to have: callers get "function not
 * found", as with a real old driver. What a function answers, and when it fails, is written in
 * state.py; how the real one answers is in NVIDIA's reference.
 * ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
 */
#include "nvml_call.h"

#include <time.h>

static int initialisations;
static int loads_at_start; /* which life of the driver this session belongs to */

/* ---- handles: they outlive the state they were made from, so they carry a UUID ---- */

#define MAX_HANDLES 2048
#define UUID_SIZE 64

static char handles[MAX_HANDLES][UUID_SIZE];
static int handle_count;
static char handles_locked;

static nvmlDevice_t handle_of(const char *uuid)
{
    char *handle = NULL;
    while (__atomic_test_and_set(&handles_locked, __ATOMIC_ACQUIRE))
        ;
    for (int i = 0; i < handle_count && !handle; i++)
        if (text_equal(handles[i], uuid))
            handle = handles[i];
    if (!handle && handle_count < MAX_HANDLES) {
        handle = handles[handle_count++];
        for (int i = 0; i < UUID_SIZE - 1 && uuid[i]; i++)
            handle[i] = uuid[i];
    }
    __atomic_clear(&handles_locked, __ATOMIC_RELEASE);
    return (nvmlDevice_t)handle;
}

static int is_handle(nvmlDevice_t device)
{
    const char *address = (const char *)device;
    return address >= handles[0] && address < handles[MAX_HANDLES];
}

/* ---- the MIG instances that this session knows: those that there were at its start ---- */

#define MAX_KNOWN (MAX_GPUS * MAX_INSTANCES)

static char known_instances[MAX_KNOWN][UUID_SIZE];
static int known_count;

static void remember_instances(const struct state *state)
{
    known_count = 0;
    for (int i = 0; i < state->gpu_count; i++)
        for (int j = 0; j < state->gpus[i].instance_count; j++) {
            char *known = known_instances[known_count++];
            const char *uuid = state->gpus[i].instances[j].uuid;
            int length = 0;
            for (; length < UUID_SIZE - 1 && uuid[length]; length++)
                known[length] = uuid[length];
            known[length] = 0;
        }
}

int is_known(const struct instance *instance)
{
    for (int i = 0; i < known_count; i++)
        if (text_equal(known_instances[i], instance->uuid))
            return 1;
    return 0;
}

/* ---- what every call begins and ends with ---- */

void close_state(struct state **state)
{
    free(*state);
}

static void sleep_milliseconds(int milliseconds)
{
    struct timespec pause = {milliseconds / 1000, (milliseconds % 1000) * 1000000L};
    if (milliseconds > 0)
        nanosleep(&pause, NULL);
}

static nvmlReturn_t host_code(const struct state *state)
{
    if (!state || !state->driver[0])
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (!state->fault)
        return NVML_SUCCESS;
    if (text_equal(state->fault, "driver_not_loaded"))
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (text_equal(state->fault, "library_mismatch"))
        return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if (text_equal(state->fault, "no_permission"))
        return NVML_ERROR_NO_PERMISSION;
    return NVML_ERROR_UNKNOWN;
}

static nvmlReturn_t function_code(const struct fault *faults, int count, const char *function)
{
    for (int i = 0; i < count; i++)
        if (text_equal(faults[i].function, function))
            return (nvmlReturn_t)faults[i].code;
    return NVML_SUCCESS;
}

static nvmlReturn_t enter_host(const char *function, struct state **state)
{
    nvmlReturn_t code;
    *state = read_state();
    if (*state)
        sleep_milliseconds((*state)->slow_milliseconds);
    code = host_code(*state);
    if (code == NVML_SUCCESS)
        code = function_code((*state)->faults, (*state)->fault_count, function);
    return code;
}

nvmlReturn_t enter(const char *function, struct state **state)
{
    if (__atomic_load_n(&initialisations, __ATOMIC_SEQ_CST) < 1)
        return NVML_ERROR_UNINITIALIZED;
    RETURN_IF_FAILED(enter_host(function, state));
    return (*state)->loads == loads_at_start ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

static nvmlReturn_t gpu_code(const struct gpu *gpu, const char *function, enum question question)
{
    if (gpu->fault && text_equal(gpu->fault, "lost"))
        return NVML_ERROR_GPU_IS_LOST;
    if (gpu->fault && text_equal(gpu->fault, "unreachable"))
        return NVML_ERROR_UNKNOWN;
    if (gpu->fault && question == ABOUT_CONDITION)
        return NVML_ERROR_RESET_REQUIRED;
    return function_code(gpu->faults, gpu->fault_count, function);
}

nvmlReturn_t enter_device(const char *function, struct state **state, struct gpu **gpu,
                          struct instance **instance, nvmlDevice_t device, enum question question)
{
    const char *uuid = (const char *)device;
    RETURN_IF_FAILED(enter(function, state));
    if (!is_handle(device))
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < (*state)->gpu_count; i++) {
        *gpu = &(*state)->gpus[i];
        if (text_equal((*gpu)->uuid, uuid))
            return gpu_code(*gpu, function, question);
        for (int j = 0; j < (*gpu)->instance_count; j++)
            if (text_equal((*gpu)->instances[j].uuid, uuid)) {
                *instance = &(*gpu)->instances[j];
                RETURN_IF_FAILED(is_known(*instance) ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT);
                return gpu_code(*gpu, function, question);
            }
    }
    return uuid[0] == 'M' ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_GPU_IS_LOST;
}

nvmlReturn_t enter_gpu(const char *function, struct state **state, struct gpu **gpu,
                       nvmlDevice_t device, enum question question)
{
    struct instance *instance = NULL;
    RETURN_IF_FAILED(enter_device(function, state, gpu, &instance, device, question));
    return instance ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

nvmlReturn_t check_privileges(const struct state *state, const struct gpu *gpu,
                              const struct instance *instance)
{
    return gpu->mig == 1 && !instance && !state->privileged ? NVML_ERROR_NO_PERMISSION : NVML_SUCCESS;
}

nvmlReturn_t check_undivided(const struct gpu *gpu)
{
    return gpu->instance_count ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

nvmlReturn_t answer(int value, unsigned int *result)
{
    if (value == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    *result = (unsigned int)value;
    return NVML_SUCCESS;
}

nvmlReturn_t answer_text(const char *text, char *result, unsigned int length)
{
    unsigned int i;
    if (!text)
        return NVML_ERROR_NOT_SUPPORTED;
    for (i = 0; text[i]; i++)
        ;
    if (i >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (i = 0; text[i]; i++)
        result[i] = text[i];
    result[i] = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t answer_switch(int on, nvmlEnableState_t *result)
{
    NEED(result);
    *result = on ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

/* ---- the library and the host ---- */

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    __attribute__((cleanup(close_state))) struct state *state = NULL;
    (void)flags;
    RETURN_IF_FAILED(enter_host(__func__, &state));
    if (__atomic_fetch_add(&initialisations, 1, __ATOMIC_SEQ_CST) == 0) {
        loads_at_start = state->loads;
        remember_instances(state);
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlInit(void)
{
    return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlShutdown(void)
{
    if (__atomic_load_n(&initialisations, __ATOMIC_SEQ_CST) < 1)
        return NVML_ERROR_UNINITIALIZED;
    __atomic_sub_fetch(&initialisations, 1, __ATOMIC_SEQ_CST);
    return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    case NVML_ERROR_FUNCTION_NOT_FOUND: return "Function Not Found";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_RESET_REQUIRED: return "GPU requires reset";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    ENTER();
    NEED(version);
    return answer_text(state->driver, version, length);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    ENTER();
    NEED(version);
    const char *dot = state->cuda;
    while (*dot && *dot != '.')
        dot++;
    *version = (int)(number(state->cuda) * 1000 + (*dot ? number(dot + 1) * 10 : 0));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

/* NVIDIA writes it as the CUDA major version before the driver's: 12.570.133.20. */
nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    char text[96];
    unsigned int i = 0;
    ENTER();
    NEED(version);
    for (const char *c = state->cuda; *c && *c != '.' && i < 8; c++)
        text[i++] = *c;
    text[i++] = '.';
    for (const char *c = state->driver; *c && i < sizeof text - 1; c++)
        text[i++] = *c;
    text[i] = 0;
    return answer_text(text, version, length);
}

/* ---- finding a GPU ---- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *deviceCount)
{
    ENTER();
    NEED(deviceCount);
    *deviceCount = (unsigned int)state->gpu_count; /* also those whose handle can't be had */
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *deviceCount)
{
    return nvmlDeviceGetCount_v2(deviceCount);
}

nvmlReturn_t give_handle(const char *uuid, nvmlDevice_t *device)
{
    NEED(device);
    *device = handle_of(uuid);
    return *device ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

static nvmlReturn_t give_gpu(const struct gpu *gpu, const char *function, nvmlDevice_t *device)
{
    RETURN_IF_FAILED(gpu_code(gpu, function, ABOUT_IDENTITY));
    return give_handle(gpu->uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    ENTER();
    if (index >= (unsigned int)state->gpu_count)
        return NVML_ERROR_INVALID_ARGUMENT;
    return give_gpu(&state->gpus[index], __func__, device);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    ENTER();
    NEED(uuid);
    for (int i = 0; i < state->gpu_count; i++)
        if (text_equal_ignoring_case(state->gpus[i].uuid, uuid))
            return give_gpu(&state->gpus[i], __func__, device);
    for (int i = 0; i < state->gpu_count; i++)
        for (int j = 0; j < state->gpus[i].instance_count; j++) {
            const struct instance *instance = &state->gpus[i].instances[j];
            if (text_equal_ignoring_case(instance->uuid, uuid) && is_known(instance)) {
                RETURN_IF_FAILED(gpu_code(&state->gpus[i], __func__, ABOUT_IDENTITY));
                return give_handle(instance->uuid, device);
            }
        }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    ENTER();
    NEED(serial);
    for (int i = 0; i < state->gpu_count; i++)
        if (state->gpus[i].serial && text_equal(state->gpus[i].serial, serial))
            return give_gpu(&state->gpus[i], __func__, device);
    return NVML_ERROR_NOT_FOUND;
}

/* A domain is written with four digits or eight: the shorter is the other's end. */
static int same_bus_id(const char *a, const char *b)
{
    int a_length = 0, b_length = 0;
    while (a[a_length])
        a_length++;
    while (b[b_length])
        b_length++;
    if (a_length > b_length)
        return text_equal_ignoring_case(a + a_length - b_length, b);
    return text_equal_ignoring_case(a, b + b_length - a_length);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device)
{
    ENTER();
    NEED(pciBusId && *pciBusId);
    for (int i = 0; i < state->gpu_count; i++)
        if (state->gpus[i].bus_id && same_bus_id(state->gpus[i].bus_id, pciBusId))
            return give_gpu(&state->gpus[i], __func__, device);
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *pciBusId, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByPciBusId_v2(pciBusId, device);
}
