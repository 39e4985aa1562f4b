/* The simulated NVML, of one GPU: what keeps it from its best, and what would repair it. */
#include "nvml_call.h"

#define FABRIC_V2_VERSION (sizeof(nvmlGpuFabricInfo_v2_t) | (2u << 24))
#define FABRIC_COMPLETED 3 /* and in state.h one more than this: completed, with an error */
#define FIELD_RECOVERY_ACTION 230
#define CLOCKS_IDLE 0x1ULL
#define ALL_CLOCKS_REASONS 0x1FFULL

/* ---- clocks ---- */

static nvmlReturn_t answer_clocks(const struct gpu *gpu, unsigned long long *reasons)
{
    NEED(reasons);
    if (gpu->clocks_event_reasons != ABSENT)
        *reasons = (unsigned long long)gpu->clocks_event_reasons;
    else
        *reasons = gpu->utilization_percent > 0 ? 0 : CLOCKS_IDLE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device,
                                                    unsigned long long *clocksEventReasons)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED_DRIVER(535);
    return answer_clocks(gpu, clocksEventReasons);
}

/* Its name before driver 535. */
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device,
                                                       unsigned long long *clocksThrottleReasons)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_clocks(gpu, clocksThrottleReasons);
}

nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t device,
                                                      unsigned long long *supportedClocksEventReasons)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED_DRIVER(535);
    NEED(supportedClocksEventReasons);
    *supportedClocksEventReasons = ALL_CLOCKS_REASONS;
    return NVML_SUCCESS;
}

/* ---- fabric ---- */

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *gpuFabricInfo)
{
    ENTER_GPU(ABOUT_CONDITION);
    nvmlGpuFabricInfoV_t found = {0};
    NEED_DRIVER(550);
    NEED(gpuFabricInfo);
    if (gpuFabricInfo->version != FABRIC_V2_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (gpu->fabric == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    found.version = gpuFabricInfo->version;
    found.state = (unsigned char)gpu->fabric;
    if (gpu->fabric > FABRIC_COMPLETED) {
        found.state = FABRIC_COMPLETED;
        found.status = NVML_ERROR_UNKNOWN;
    }
    *gpuFabricInfo = found;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *gpuFabricInfo)
{
    nvmlGpuFabricInfoV_t found = {.version = FABRIC_V2_VERSION};
    NEED(gpuFabricInfo);
    RETURN_IF_FAILED(nvmlDeviceGetGpuFabricInfoV(device, &found));
    gpuFabricInfo->state = found.state;
    gpuFabricInfo->status = found.status;
    gpuFabricInfo->cliqueId = 0;
    return NVML_SUCCESS;
}

/* ---- memory that is the host's ---- */

/* Of driver 580 and newer, hence in no header of an earlier one. */
struct addressing_mode {
    unsigned int version, value;
};

#define ADDRESSING_MODE_VERSION (sizeof(struct addressing_mode) | (1u << 24))

nvmlReturn_t nvmlDeviceGetAddressingMode(nvmlDevice_t device, struct addressing_mode *mode)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED_DRIVER(580);
    NEED(mode);
    if (mode->version != ADDRESSING_MODE_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return answer(gpu->addressing_mode, &mode->value);
}

/* ---- fields by number ---- */

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int valuesCount, nvmlFieldValue_t *values)
{
    ENTER_GPU(ABOUT_CONDITION);
    NEED(values && valuesCount > 0);
    for (int i = 0; i < valuesCount; i++) { /* each field answers for itself */
        values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        if (values[i].fieldId == FIELD_RECOVERY_ACTION && gpu->recovery_action != ABSENT &&
            number(state->driver) >= 570) {
            values[i].nvmlReturn = NVML_SUCCESS;
            values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
            values[i].value.uiVal = (unsigned int)gpu->recovery_action;
        }
    }
    return NVML_SUCCESS;
}
