/* The simulated NVML, of one GPU: its health and its processes. */
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
    RETURN_IF_FAILED(check_undivided(gpu));
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
    RETURN_IF_FAILED(check_undivided(gpu));
    if (gpu->remap_pending == ABSENT)
        return NVML_ERROR_NOT_SUPPORTED;
    *corrRows = 0;
    *uncRows = gpu->remap_pending || gpu->remap_failed == 1;
    *isPending = (unsigned int)gpu->remap_pending;
    *failureOccurred = gpu->remap_failed == 1;
    return NVML_SUCCESS;
}

/* ---- processes ---- */

static int is_meant(const struct process *process, enum process_kind kind,
                    const struct instance *instance)
{
    return process->kind == kind && is_of(process, instance);
}

static unsigned int count_processes(const struct gpu *gpu, enum process_kind kind,
                                    const struct instance *instance)
{
    unsigned int count = 0;
    for (int i = 0; i < gpu->process_count; i++)
        count += (unsigned int)is_meant(&gpu->processes[i], kind, instance);
    return count;
}

/* With too little room the answer is the number there are, and INSUFFICIENT_SIZE. */
static nvmlReturn_t give_count(const struct gpu *gpu, enum process_kind kind,
                               const struct instance *instance, unsigned int *infoCount)
{
    unsigned int room, count = count_processes(gpu, kind, instance);
    NEED(infoCount);
    room = *infoCount;
    *infoCount = count;
    return room < count ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

static nvmlReturn_t give_processes_v1(const struct gpu *gpu, enum process_kind kind,
                                      const struct instance *instance, unsigned int *infoCount,
                                      nvmlProcessInfo_v1_t *infos)
{
    RETURN_IF_FAILED(give_count(gpu, kind, instance, infoCount));
    for (int i = 0, j = 0; i < gpu->process_count; i++)
        if (is_meant(&gpu->processes[i], kind, instance)) {
            infos[j].pid = gpu->processes[i].pid;
            infos[j++].usedGpuMemory = gpu->processes[i].memory_mib * MIB;
        }
    return NVML_SUCCESS;
}

static nvmlReturn_t give_processes_v2(const struct gpu *gpu, enum process_kind kind,
                                      const struct instance *instance, unsigned int *infoCount,
                                      nvmlProcessInfo_v2_t *infos)
{
    RETURN_IF_FAILED(give_count(gpu, kind, instance, infoCount));
    for (int i = 0, j = 0; i < gpu->process_count; i++) {
        const struct process *process = &gpu->processes[i];
        if (is_meant(process, kind, instance)) {
            infos[j].pid = process->pid;
            infos[j].usedGpuMemory = process->memory_mib * MIB;
            infos[j].gpuInstanceId = process->gi == ABSENT ? NOT_IN_MIG_MODE : (unsigned)process->gi;
            infos[j++].computeInstanceId =
                process->ci == ABSENT ? NOT_IN_MIG_MODE : (unsigned)process->ci;
        }
    }
    return NVML_SUCCESS;
}

/* Which of the two structs a version of a query fills. */
#define PROCESS_QUERY(function, kind, info, give) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *infoCount, info *infos) \
    { \
        ENTER_DEVICE(ABOUT_CONDITION); \
        RETURN_IF_FAILED(check_privileges(state, gpu, instance)); \
        return give(gpu, kind, instance, infoCount, infos); \
    }

PROCESS_QUERY(nvmlDeviceGetComputeRunningProcesses, COMPUTE, nvmlProcessInfo_v1_t, give_processes_v1)
PROCESS_QUERY(nvmlDeviceGetComputeRunningProcesses_v2, COMPUTE, nvmlProcessInfo_v2_t,
              give_processes_v2)
PROCESS_QUERY(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE, nvmlProcessInfo_t,
              give_processes_v2)
PROCESS_QUERY(nvmlDeviceGetGraphicsRunningProcesses, GRAPHICS, nvmlProcessInfo_v1_t,
              give_processes_v1)
PROCESS_QUERY(nvmlDeviceGetGraphicsRunningProcesses_v2, GRAPHICS, nvmlProcessInfo_v2_t,
              give_processes_v2)
PROCESS_QUERY(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS, nvmlProcessInfo_t,
              give_processes_v2)
PROCESS_QUERY(nvmlDeviceGetMPSComputeRunningProcesses, MPS, nvmlProcessInfo_v1_t, give_processes_v1)
PROCESS_QUERY(nvmlDeviceGetMPSComputeRunningProcesses_v2, MPS, nvmlProcessInfo_v2_t,
              give_processes_v2)
PROCESS_QUERY(nvmlDeviceGetMPSComputeRunningProcesses_v3, MPS, nvmlProcessInfo_t, give_processes_v2)

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t *utilization,
                                             unsigned int *processSamplesCount,
                                             unsigned long long lastSeenTimeStamp)
{
    ENTER_GPU(ABOUT_CONDITION);
    unsigned int room, count = count_processes(gpu, COMPUTE, NULL);
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
        if (gpu->processes[i].kind == COMPUTE) {
            nvmlProcessUtilizationSample_t sample = {0};
            sample.pid = gpu->processes[i].pid;
            sample.timeStamp = lastSeenTimeStamp + 1;
            sample.smUtil = (unsigned int)gpu->utilization_percent / count;
            utilization[j++] = sample;
        }
    return NVML_SUCCESS;
}

/* Off on all but a machine whose administrator has turned it on. */
nvmlReturn_t nvmlDeviceGetAccountingMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    ENTER_GPU(ABOUT_CONDITION);
    return answer_switch(0, mode);
}
