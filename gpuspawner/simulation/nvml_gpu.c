/* The simulated NVML, of one GPU: what it is and how it is doing. */
#include "nvml_call.h"

#define MEMORY_V2_VERSION (sizeof(nvmlMemory_v2_t) | (2u << 24))

/* ---- what a GPU is ---- */

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    ENTER_DEVICE(ABOUT_IDENTITY);
    NEED(uuid);
    return answer_text(instance ? instance->uuid : gpu->uuid, uuid, length);
}

/* An instance has its GPU's name, " MIG " and its profile. */
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    ENTER_DEVICE(ABOUT_IDENTITY);
    NEED(name);
    const char *parts[] = {gpu->name, " MIG ", instance ? instance->profile : ""};
    unsigned int used = 0;
    for (int i = 0; i < (instance ? 3 : 1); i++) {
        RETURN_IF_FAILED(answer_text(parts[i], name + used, length - used));
        while (name[used])
            used++;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(serial);
    return answer_text(gpu->serial, serial, length);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    ENTER_DEVICE(ABOUT_IDENTITY);
    NEED(index);
    return answer(instance ? instance->index : (int)(gpu - state->gpus), index);
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

nvmlReturn_t answer_pci(const char *text, nvmlPciInfo_t *pci)
{
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

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    ENTER_GPU(ABOUT_IDENTITY);
    NEED(pci);
    return answer_pci(gpu->bus_id, pci);
}

/* Only Windows has driver models. */
nvmlReturn_t nvmlDeviceGetDriverModel_v2(nvmlDevice_t device, nvmlDriverModel_t *current,
                                         nvmlDriverModel_t *pending)
{
    ENTER_GPU(ABOUT_IDENTITY);
    (void)current;
    (void)pending;
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetDriverModel(nvmlDevice_t device, nvmlDriverModel_t *current,
                                      nvmlDriverModel_t *pending)
{
    return nvmlDeviceGetDriverModel_v2(device, current, pending);
}

/* ---- how a GPU is doing ---- */

/* Used, reserved and all of the memory of a GPU or an instance, in MiB. */
struct memory {
    unsigned long long used, reserved, total;
};

static nvmlReturn_t measure(const struct state *state, const struct gpu *gpu,
                            const struct instance *instance, struct memory *memory)
{
    RETURN_IF_FAILED(check_privileges(state, gpu, instance));
    if (!instance && gpu->memory_total_mib == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    memory->used = (unsigned long long)(instance ? instance->used_mib : gpu->memory_used_mib);
    memory->total = (unsigned long long)(instance ? instance->memory_mib : gpu->memory_total_mib);
    memory->reserved = instance ? 0 : (unsigned long long)gpu->memory_reserved_mib;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    struct memory found;
    ENTER_DEVICE(ABOUT_CONDITION);
    NEED(memory);
    RETURN_IF_FAILED(measure(state, gpu, instance, &found));
    /* Version 1 counts what the driver keeps for itself as used. */
    memory->total = found.total * MIB;
    memory->used = (found.used + found.reserved) * MIB;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    struct memory found;
    ENTER_DEVICE(ABOUT_CONDITION);
    NEED(memory);
    if (memory->version != MEMORY_V2_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    RETURN_IF_FAILED(measure(state, gpu, instance, &found));
    memory->total = found.total * MIB;
    memory->reserved = found.reserved * MIB;
    memory->used = found.used * MIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *bar1Memory)
{
    ENTER_DEVICE(ABOUT_CONDITION);
    NEED(bar1Memory);
    RETURN_IF_FAILED(check_privileges(state, gpu, instance));
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

static nvmlReturn_t answer_codec(const struct gpu *gpu, unsigned int *utilization,
                                 unsigned int *samplingPeriodUs)
{
    if (gpu->mig == 1)
        return NVML_ERROR_NOT_SUPPORTED;
    NEED(utilization && samplingPeriodUs);
    *utilization = 0;
    *samplingPeriodUs = 167000;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *utilization,
                                             unsigned int *samplingPeriodUs)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_codec(gpu, utilization, samplingPeriodUs);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *utilization,
                                             unsigned int *samplingPeriodUs)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_codec(gpu, utilization, samplingPeriodUs);
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

nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *maxLinkGen)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(maxLinkGen);
    return answer(4, maxLinkGen);
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int *maxLinkWidth)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(maxLinkWidth);
    return answer(16, maxLinkWidth);
}

nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link,
                                        unsigned int *version)
{
    ENTER_GPU(ABOUT_CONDITION);
    (void)link;
    (void)version;
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, nvmlPerfPolicyType_t perfPolicyType,
                                          nvmlViolationTime_t *violTime)
{
    ENTER_GPU(ABOUT_CONDITION);
    (void)perfPolicyType;
    (void)violTime;
    return NVML_ERROR_NOT_SUPPORTED;
}
