/*
 * A libnvidia-ml.so.1 for machines without an NVIDIA GPU: NVML's binary interface over a state file.
 *
 * A function that is not here is one this "driver" is too old to have: callers get "function not
 * found", as with a real old driver. What a function answers, and when it fails, is written in
 * state.py; how the real one answers is in NVIDIA's reference.
 * ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
 */
#include "state.h"

#ifdef GPUSPAWNER_NVML_H
#include GPUSPAWNER_NVML_H /* the tests compile our definitions against NVIDIA's own prototypes */
#else
#include "nvml_abi.h"
#endif

#include <time.h>

#define MIB (1024ULL * 1024ULL)
#define NOT_IN_MIG_MODE 0xFFFFFFFFu
#define MEMORY_V2_VERSION (sizeof(nvmlMemory_v2_t) | (2u << 24))
/* Identity is answered from what the driver remembers, also by a GPU that needs a reset. */
enum question { ABOUT_IDENTITY, ABOUT_CONDITION };

static int initialisations;

/* ---- handles: they outlive the state they were made from, so they carry a UUID ---- */

#define MAX_HANDLES 256
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

/* ---- what every call begins with ---- */

static void close_state(struct state **state)
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

static nvmlReturn_t enter(const char *function, struct state **state)
{
    if (__atomic_load_n(&initialisations, __ATOMIC_SEQ_CST) < 1)
        return NVML_ERROR_UNINITIALIZED;
    return enter_host(function, state);
}

static nvmlReturn_t gpu_code(const struct gpu *gpu, const char *function, enum question question)
{
    if (gpu->fault && text_equal(gpu->fault, "lost"))
        return NVML_ERROR_GPU_IS_LOST;
    if (gpu->fault && question == ABOUT_CONDITION)
        return NVML_ERROR_RESET_REQUIRED;
    return function_code(gpu->faults, gpu->fault_count, function);
}

static nvmlReturn_t enter_gpu(const char *function, struct state **state, struct gpu **gpu,
                              nvmlDevice_t device, enum question question)
{
    nvmlReturn_t code = enter(function, state);
    if (code != NVML_SUCCESS)
        return code;
    if (!is_handle(device))
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < (*state)->gpu_count; i++)
        if (text_equal((*state)->gpus[i].uuid, (const char *)device)) {
            *gpu = &(*state)->gpus[i];
            return gpu_code(*gpu, function, question);
        }
    return NVML_ERROR_GPU_IS_LOST;
}

#define RETURN_IF_FAILED(expression) \
    do { \
        nvmlReturn_t code_ = (expression); \
        if (code_ != NVML_SUCCESS) \
            return code_; \
    } while (0)

#define ENTER() \
    __attribute__((cleanup(close_state))) struct state *state = NULL; \
    RETURN_IF_FAILED(enter(__func__, &state))

#define ENTER_GPU(question) \
    __attribute__((cleanup(close_state))) struct state *state = NULL; \
    struct gpu *gpu = NULL; \
    RETURN_IF_FAILED(enter_gpu(__func__, &state, &gpu, device, question))

#define NEED(pointer) RETURN_IF_FAILED((pointer) ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT)

static nvmlReturn_t answer(int value, unsigned int *result)
{
    if (value == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    *result = (unsigned int)value;
    return NVML_SUCCESS;
}

static nvmlReturn_t answer_text(const char *text, char *result, unsigned int length)
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

/* ---- the library and the host ---- */

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    __attribute__((cleanup(close_state))) struct state *state = NULL;
    (void)flags;
    RETURN_IF_FAILED(enter_host(__func__, &state));
    __atomic_add_fetch(&initialisations, 1, __ATOMIC_SEQ_CST);
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

static nvmlReturn_t give_handle(const struct gpu *gpu, const char *function, nvmlDevice_t *device)
{
    NEED(device);
    RETURN_IF_FAILED(gpu_code(gpu, function, ABOUT_IDENTITY));
    *device = handle_of(gpu->uuid);
    return *device ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    ENTER();
    if (index >= (unsigned int)state->gpu_count)
        return NVML_ERROR_INVALID_ARGUMENT;
    return give_handle(&state->gpus[index], __func__, device);
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
            return give_handle(&state->gpus[i], __func__, device);
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    ENTER();
    NEED(serial);
    for (int i = 0; i < state->gpu_count; i++)
        if (state->gpus[i].serial && text_equal(state->gpus[i].serial, serial))
            return give_handle(&state->gpus[i], __func__, device);
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
            return give_handle(&state->gpus[i], __func__, device);
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *pciBusId, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByPciBusId_v2(pciBusId, device);
}

/* ---- what a GPU is ---- */

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(uuid);
    return answer_text(gpu->uuid, uuid, length);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(name);
    return answer_text(gpu->name, name, length);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(serial);
    return answer_text(gpu->serial, serial, length);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(index);
    return answer((int)(gpu - state->gpus), index);
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minorNumber)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(minorNumber);
    return answer(gpu->minor_number, minorNumber);
}

static int contains(const char *text, const char *part)
{
    for (; *text; text++) {
        const char *a = text, *b = part;
        while (*b && *a == *b) {
            a++;
            b++;
        }
        if (!*b)
            return 1;
    }
    return 0;
}

nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t *type)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(type);
    if (!gpu->name)
        *type = NVML_BRAND_UNKNOWN;
    else if (contains(gpu->name, "Tesla"))
        *type = NVML_BRAND_TESLA;
    else if (contains(gpu->name, "GeForce"))
        *type = NVML_BRAND_GEFORCE;
    else if (contains(gpu->name, "RTX"))
        *type = NVML_BRAND_NVIDIA_RTX;
    else
        *type = NVML_BRAND_NVIDIA;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(major && minor);
    if (gpu->compute_capability_major == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    *major = gpu->compute_capability_major;
    *minor = gpu->compute_capability_minor;
    return NVML_SUCCESS;
}

static unsigned int hexadecimal(const char **text)
{
    unsigned int value = 0;
    for (;; ++*text) {
        char c = **text;
        if (c >= '0' && c <= '9')
            value = value * 16 + (unsigned int)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            value = value * 16 + (unsigned int)((c | 32) - 'a' + 10);
        else
            return value;
    }
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(pci);
    const char *text = gpu->bus_id;
    if (!text)
        return NVML_ERROR_NOT_SUPPORTED;
    RETURN_IF_FAILED(answer_text(text, pci->busId, sizeof pci->busId));
    RETURN_IF_FAILED(answer_text(text + 4, pci->busIdLegacy, sizeof pci->busIdLegacy));
    pci->domain = hexadecimal(&text);
    text += *text == ':';
    pci->bus = hexadecimal(&text);
    text += *text == ':';
    pci->device = hexadecimal(&text);
    pci->pciDeviceId = 0x10DE; /* NVIDIA's vendor number, and no device of theirs */
    pci->pciSubSystemId = 0;
    return NVML_SUCCESS;
}

/* ---- how a GPU is doing ---- */

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(memory);
    if (gpu->memory_total_mib == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    /* Version 1 counts what the driver keeps for itself as used. */
    memory->total = (unsigned long long)gpu->memory_total_mib * MIB;
    memory->used = (unsigned long long)(gpu->memory_used_mib + gpu->memory_reserved_mib) * MIB;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(memory);
    if (memory->version != MEMORY_V2_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (gpu->memory_total_mib == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    memory->total = (unsigned long long)gpu->memory_total_mib * MIB;
    memory->reserved = (unsigned long long)gpu->memory_reserved_mib * MIB;
    memory->used = (unsigned long long)gpu->memory_used_mib * MIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *bar1Memory)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(bar1Memory);
    bar1Memory->bar1Total = 256 * MIB;
    bar1Memory->bar1Used = 1 * MIB;
    bar1Memory->bar1Free = 255 * MIB;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(utilization);
    if (gpu->mig == 1) /* a GPU in MIG mode has none: only its instances would */
        return NVML_ERROR_NOT_SUPPORTED;
    RETURN_IF_FAILED(answer(gpu->utilization_percent, &utilization->gpu));
    utilization->memory = utilization->gpu / 2;
    return NVML_SUCCESS;
}

static nvmlReturn_t answer_codec(unsigned int *utilization, unsigned int *samplingPeriodUs)
{
    NEED(utilization && samplingPeriodUs);
    *utilization = 0;
    *samplingPeriodUs = 167000;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *utilization,
                                             unsigned int *samplingPeriodUs)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_codec(utilization, samplingPeriodUs);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *utilization,
                                             unsigned int *samplingPeriodUs)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_codec(utilization, samplingPeriodUs);
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensorType,
                                      unsigned int *temp)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(temp && sensorType == NVML_TEMPERATURE_GPU);
    return answer(temperature_celsius(gpu), temp);
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device,
                                               nvmlTemperatureThresholds_t thresholdType,
                                               unsigned int *temp)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(temp);
    *temp = thresholdType == NVML_TEMPERATURE_THRESHOLD_SHUTDOWN ? 92 : 89;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(power);
    return answer(power_milliwatts(gpu), power);
}

static nvmlReturn_t answer_power_limit(const struct gpu *gpu, unsigned int *limit)
{
    NEED(limit);
    return answer(gpu->power_limit_watts == ABSENT ? ABSENT : gpu->power_limit_watts * 1000, limit);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *limit)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_power_limit(gpu, limit);
}

nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *defaultLimit)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_power_limit(gpu, defaultLimit);
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *limit)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_power_limit(gpu, limit);
}

nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned int *speed)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(speed);
    return answer(gpu->fan_percent, speed);
}

static nvmlReturn_t answer_clock(int busy, nvmlClockType_t type, unsigned int *clock)
{
    NEED(clock);
    *clock = type == NVML_CLOCK_MEM ? 1215 : busy ? 1410 : 210;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_clock(gpu->utilization_percent > 0, type, clock);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_clock(1, type, clock);
}

nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *pState)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(pState);
    *pState = gpu->utilization_percent > 0 ? NVML_PSTATE_0 : NVML_PSTATE_8;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerState(nvmlDevice_t device, nvmlPstates_t *pState)
{
    return nvmlDeviceGetPerformanceState(device, pState);
}

static nvmlReturn_t answer_switch(int on, nvmlEnableState_t *result)
{
    NEED(result);
    *result = on ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_switch(1, mode);
}

nvmlReturn_t nvmlDeviceGetDisplayMode(nvmlDevice_t device, nvmlEnableState_t *display)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_switch(0, display);
}

nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t device, nvmlEnableState_t *isActive)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_switch(0, isActive);
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(mode);
    *mode = (nvmlComputeMode_t)gpu->compute_mode;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter,
                                         unsigned int *value)
{
    ENTER_GPU(ABOUT_CONDITION);
    (void)counter;
    NEED(value);
    return answer(0, value);
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *currLinkGen)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(currLinkGen);
    return answer(4, currLinkGen);
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *currLinkWidth)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(currLinkWidth);
    return answer(16, currLinkWidth);
}

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, nvmlPerfPolicyType_t perfPolicyType,
                                          nvmlViolationTime_t *violTime)
{
    ENTER_GPU(ABOUT_CONDITION);
    (void)perfPolicyType;
    (void)violTime;
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int valuesCount, nvmlFieldValue_t *values)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(values && valuesCount > 0);
    for (int i = 0; i < valuesCount; i++) /* each field answers for itself, and we know none */
        values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

/* ---- health ---- */

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current,
                                  nvmlEnableState_t *pending)
{
    ENTER_GPU(ABOUT_CONDITION);
    if (gpu->ecc == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    RETURN_IF_FAILED(answer_switch(gpu->ecc, current));
    return answer_switch(gpu->ecc, pending);
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                         nvmlEccCounterType_t counterType,
                                         unsigned long long *eccCounts)
{
    ENTER_GPU(ABOUT_CONDITION);
    (void)counterType;
    NEED(eccCounts);
    if (gpu->ecc != 1)
        return NVML_ERROR_NOT_SUPPORTED;
    *eccCounts = errorType == NVML_MEMORY_ERROR_TYPE_UNCORRECTED && gpu->ecc_errors > 0
                     ? (unsigned long long)gpu->ecc_errors : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, nvmlEnableState_t *isPending)
{
    ENTER_GPU(ABOUT_CONDITION);
    if (gpu->retired_pages_pending == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    return answer_switch(gpu->retired_pages_pending, isPending);
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                       unsigned int *pageCount, unsigned long long *addresses)
{
    ENTER_GPU(ABOUT_CONDITION);
    (void)cause;
    (void)addresses;
    NEED(pageCount);
    if (gpu->retired_pages_pending == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    *pageCount = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrRows,
                                       unsigned int *uncRows, unsigned int *isPending,
                                       unsigned int *failureOccurred)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(corrRows && uncRows && isPending && failureOccurred);
    if (gpu->remap_pending == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    *corrRows = 0;
    *uncRows = gpu->remap_pending || gpu->remap_failed == 1;
    *isPending = (unsigned int)gpu->remap_pending;
    *failureOccurred = gpu->remap_failed == 1;
    return NVML_SUCCESS;
}

/* ---- MIG: a GPU can be in MIG mode, its instances are not simulated ---- */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *currentMode,
                                  unsigned int *pendingMode)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(currentMode && pendingMode);
    RETURN_IF_FAILED(answer(gpu->mig, currentMode));
    return answer(gpu->mig, pendingMode);
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(count);
    return answer(gpu->mig == 1 ? 7 : 0, count);
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
                                                 nvmlDevice_t *migDevice)
{
    ENTER_GPU(ABOUT_CONDITION);
    (void)index;
    (void)migDevice;
    return gpu->mig == 1 ? NVML_ERROR_NOT_FOUND : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *isMigDevice)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(isMigDevice);
    return answer(0, isMigDevice);
}

/* ---- processes ---- */

static unsigned int count_processes(const struct gpu *gpu, int graphics)
{
    unsigned int count = 0;
    for (int i = 0; i < gpu->process_count; i++)
        count += gpu->processes[i].graphics == graphics;
    return count;
}

/* With too little room the answer is the number there are, and INSUFFICIENT_SIZE. */
static nvmlReturn_t give_processes_v1(const struct gpu *gpu, int graphics, unsigned int *infoCount,
                                      nvmlProcessInfo_v1_t *infos)
{
    unsigned int room, count = count_processes(gpu, graphics);
    NEED(infoCount);
    room = *infoCount;
    *infoCount = count;
    if (room < count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (int i = 0, j = 0; i < gpu->process_count; i++)
        if (gpu->processes[i].graphics == graphics) {
            infos[j].pid = gpu->processes[i].pid;
            infos[j++].usedGpuMemory = gpu->processes[i].memory_mib * MIB;
        }
    return NVML_SUCCESS;
}

static nvmlReturn_t give_processes_v2(const struct gpu *gpu, int graphics, unsigned int *infoCount,
                                      nvmlProcessInfo_v2_t *infos)
{
    unsigned int room, count = count_processes(gpu, graphics);
    NEED(infoCount);
    room = *infoCount;
    *infoCount = count;
    if (room < count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (int i = 0, j = 0; i < gpu->process_count; i++)
        if (gpu->processes[i].graphics == graphics) {
            infos[j].pid = gpu->processes[i].pid;
            infos[j].usedGpuMemory = gpu->processes[i].memory_mib * MIB;
            infos[j].gpuInstanceId = NOT_IN_MIG_MODE;
            infos[j++].computeInstanceId = NOT_IN_MIG_MODE;
        }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *infoCount,
                                                  nvmlProcessInfo_v1_t *infos)
{
    ENTER_GPU(ABOUT_CONDITION);
    return give_processes_v1(gpu, 0, infoCount, infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount,
                                                     nvmlProcessInfo_v2_t *infos)
{
    ENTER_GPU(ABOUT_CONDITION);
    return give_processes_v2(gpu, 0, infoCount, infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount,
                                                     nvmlProcessInfo_t *infos)
{
    ENTER_GPU(ABOUT_CONDITION);
    return give_processes_v2(gpu, 0, infoCount, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int *infoCount,
                                                   nvmlProcessInfo_v1_t *infos)
{
    ENTER_GPU(ABOUT_CONDITION);
    return give_processes_v1(gpu, 1, infoCount, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount,
                                                      nvmlProcessInfo_v2_t *infos)
{
    ENTER_GPU(ABOUT_CONDITION);
    return give_processes_v2(gpu, 1, infoCount, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount,
                                                      nvmlProcessInfo_t *infos)
{
    ENTER_GPU(ABOUT_CONDITION);
    return give_processes_v2(gpu, 1, infoCount, infos);
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t *utilization,
                                             unsigned int *processSamplesCount,
                                             unsigned long long lastSeenTimeStamp)
{
    ENTER_GPU(ABOUT_CONDITION);
    unsigned int room, count = count_processes(gpu, 0);
    NEED(processSamplesCount);
    if (gpu->mig == 1 || gpu->utilization_percent == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    if (!count)
        return NVML_ERROR_NOT_FOUND;
    room = *processSamplesCount;
    *processSamplesCount = count;
    if (!utilization || room < count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (int i = 0, j = 0; i < gpu->process_count; i++)
        if (!gpu->processes[i].graphics) {
            nvmlProcessUtilizationSample_t sample = {0};
            sample.pid = gpu->processes[i].pid;
            sample.timeStamp = lastSeenTimeStamp + 1;
            sample.smUtil = (unsigned int)gpu->utilization_percent / count;
            utilization[j++] = sample;
        }
    return NVML_SUCCESS;
}
