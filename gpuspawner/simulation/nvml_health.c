/* The simulated NVML, of one GPU: its health, MIG mode and processes. */
#include "nvml_call.h"

#define NOT_IN_MIG_MODE 0xFFFFFFFFu

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
