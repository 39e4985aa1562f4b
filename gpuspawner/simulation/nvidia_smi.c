/*
 * An nvidia-smi over the simulated host's state file: the table, -L, --query-gpu,
 * --query-compute-apps and --version, in the real one's words. Linked statically, so that it runs in
 * any container of the same architecture.
 * ref: https://docs.nvidia.com/deploy/nvidia-smi/index.html
 */
#include "nvidia_smi.h"

/* ---- the table ---- */

#define RULE "-----------------------------------------------------------------------------------------"
#define THREE "-----------------------------------------+------------------------+----------------------"
#define THREE_DOUBLE \
    "=========================================+========================+======================"

static void print_table_head(const struct state *state)
{
    char now[64];
    time_t seconds = time(NULL);
    strftime(now, sizeof now, "%a %b %e %H:%M:%S %Y", localtime(&seconds));
    printf("%s       \n", now);
    printf("+" RULE "+\n");
    printf("| NVIDIA-SMI %-22s Driver Version: %-14s CUDA Version: %-8s |\n", state->driver,
           state->driver, state->cuda);
    printf("|" THREE "+\n");
    printf("| GPU  Name                 Persistence-M | Bus-Id          Disp.A |"
           " Volatile Uncorr. ECC |\n");
    printf("| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage |"
           " GPU-Util  Compute M. |\n");
    printf("|                                         |                        |"
           "               MIG M. |\n");
    printf("|" THREE_DOUBLE "|\n");
}

static void print_table_gpu(const struct state *state, const struct gpu *gpu)
{
    char fan[16] = "N/A", power[64] = "N/A", memory[64], busy[16] = "N/A", ecc[16] = "N/A";
    if (gpu->fan_percent != ABSENT)
        snprintf(fan, sizeof fan, "%d%%", gpu->fan_percent);
    if (gpu->power_limit_watts != ABSENT)
        snprintf(power, sizeof power, "%dW / %4dW", power_milliwatts(gpu) / 1000,
                 gpu->power_limit_watts);
    if (utilization(gpu) != ABSENT)
        snprintf(busy, sizeof busy, "%d%%", utilization(gpu));
    if (gpu->ecc == 1 && gpu->instance_count)
        snprintf(ecc, sizeof ecc, "On");
    else if (gpu->ecc == 1)
        snprintf(ecc, sizeof ecc, "%d", gpu->ecc_errors);
    else if (gpu->ecc == 0 && !gpu->instance_count)
        snprintf(ecc, sizeof ecc, "Off");
    if (gpu->memory_total_mib == ABSENT)
        strcpy(memory, "Not Supported");
    else if (gpu->mig == 1 && !state->privileged)
        strcpy(memory, "N/A");
    else
        snprintf(memory, sizeof memory, "%dMiB / %6dMiB", gpu->memory_used_mib,
                 gpu->memory_total_mib);
    if (needs_reset(gpu)) {
        strcpy(power, "ERR!");
        strcpy(busy, "ERR!");
        strcpy(memory, "GPU requires reset");
    }
    printf("| %3d  %-30.30s On  |   %-16s Off | %20s |\n", index_of(state, gpu),
           gpu->name ? gpu->name : "ERR!", gpu->bus_id ? gpu->bus_id : "N/A", ecc);
    printf("| %-4s %3dC    %s %23s | %22s | %7s %12.12s |\n", fan, temperature_celsius(gpu),
           gpu->utilization_percent > 0 ? "P0" : "P8", power, memory, busy,
           gpu->compute_mode == 3 ? "E. Process" : compute_mode_name(gpu));
    printf("|                                         |                        | %20s |\n",
           gpu->mig == ABSENT              ? "N/A"
           : mig_pending(gpu) != gpu->mig ? (gpu->mig ? "Enabled*" : "Disabled*")
           : gpu->mig                     ? "Enabled"
                                          : "Disabled");
    printf("+" THREE "+\n");
}

#define MIG_RULE "------------------+----------------------------------+-----------+-----------------------"
#define MIG_DOUBLE \
    "==================+==================================+===========+======================="

static void print_table_instance(int index, const struct instance *instance)
{
    char memory[64];
    snprintf(memory, sizeof memory, "%dMiB / %5dMiB", instance->used_mib, instance->memory_mib);
    printf("| %2d  %3d  %2d  %2d  | %29s    | %2d      0 |  %d   0    0    0    0 |\n", index,
           instance->gi, instance->ci, instance->index, memory, instance->slices * 14,
           instance->gi_slices);
    printf("|                  | %32s |           |                       |\n", "0MiB / 32767MiB  ");
    printf("+" MIG_RULE "+\n");
}

/* The instances, where a GPU is in MIG mode. */
static void print_table_instances(const struct options *options, const struct state *state)
{
    int in_mig_mode = 0, any = 0;
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++)
        if (chosen(options, state, gpu) && gpu->mig == 1) {
            in_mig_mode = 1;
            any |= gpu->instance_count;
        }
    if (!in_mig_mode)
        return;
    printf("%89s\n+" RULE "+\n", "");
    printf("| MIG devices:                                                                            |\n");
    if (any) {
        printf("+" MIG_RULE "+\n");
        printf("| GPU  GI  CI  MIG |                     Memory-Usage |        Vol|        Shared         |\n");
        printf("|      ID  ID  Dev |                       BAR1-Usage | SM     Unc| CE ENC  DEC  OFA  JPG |\n");
        printf("|                  |                                  |        ECC|                       |\n");
        printf("|" MIG_DOUBLE "|\n");
    } else {
        printf("|=========================================================================================|\n");
        printf("|  No MIG devices found                                                                   |\n");
        printf("+" RULE "+\n");
    }
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++)
        for (int i = 0; i < gpu->instance_count; i++)
            if (chosen(options, state, gpu) && !gpu->fault)
                print_table_instance(index_of(state, gpu), &gpu->instances[i]);
}

static void put_id(char *out, int id)
{
    if (id == ABSENT)
        strcpy(out, "N/A");
    else
        snprintf(out, VALUE_SIZE, "%d", id);
}

static const char *process_type(const struct process *process)
{
    return process->kind == GRAPHICS ? "G" : process->kind == MPS ? "M+C" : "C";
}

static void print_table_processes(const struct options *options, const struct state *state)
{
    int any = 0;
    printf("%89s\n", "");
    printf("+" RULE "+\n");
    printf("| Processes:                                                                              |\n");
    printf("|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |\n");
    printf("|        ID   ID                                                               Usage      |\n");
    printf("|=========================================================================================|\n");
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++)
        for (int i = 0; i < gpu->process_count; i++) {
            char name[VALUE_SIZE], gi[VALUE_SIZE], ci[VALUE_SIZE];
            if (!chosen(options, state, gpu) || gpu->fault)
                continue;
            put_process_name(name, gpu->processes[i].pid);
            put_id(gi, gpu->processes[i].gi);
            put_id(ci, gpu->processes[i].ci);
            printf("| %4d   %3s  %3s %15u %6s   %-34.34s %8lluMiB |\n", index_of(state, gpu), gi, ci,
                   gpu->processes[i].pid, process_type(&gpu->processes[i]), name,
                   gpu->processes[i].memory_mib);
            any = 1;
        }
    if (!any)
        printf("|  No running processes found                                                             |\n");
    printf("+" RULE "+\n");
}

static int print_table(const struct options *options, const struct state *state)
{
    int code = 0;
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++)
        if (lost(gpu) && chosen(options, state, gpu))
            code = report_lost(gpu);
    print_table_head(state);
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++)
        if (!lost(gpu) && chosen(options, state, gpu))
            print_table_gpu(state, gpu);
    print_table_instances(options, state);
    print_table_processes(options, state);
    return code;
}

/* ---- the command ---- */

static int print_list(const struct options *options, const struct state *state)
{
    int code = 0;
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++) {
        if (!chosen(options, state, gpu))
            continue;
        if (lost(gpu)) {
            code = report_lost(gpu);
            continue;
        }
        printf("GPU %d: %s (UUID: %s)\n", index_of(state, gpu), gpu->name ? gpu->name : "ERR!",
               gpu->uuid);
        for (int i = 0; i < gpu->instance_count; i++)
            printf("  MIG %-12sDevice %2d: (UUID: %s)\n", gpu->instances[i].profile,
                   gpu->instances[i].index, gpu->instances[i].uuid);
    }
    return code;
}

static int print_version(const struct state *state)
{
    printf("NVIDIA-SMI version  : %s\n", state->driver);
    printf("NVML version        : %s\n", state->driver);
    printf("DRIVER version      : %s\n", state->driver);
    printf("CUDA Version        : %s\n", state->cuda);
    return 0;
}

/* 0 if NVML would start; else its reason on stdout and the exit code. */
static int check_host(const struct state *state)
{
    if (!state || !state->driver[0] ||
        (state->fault && !strcmp(state->fault, "driver_not_loaded"))) {
        printf("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
               "Make sure that the latest NVIDIA driver is installed and running.\n\n");
        return EXIT_NO_DRIVER;
    }
    if (!state->fault)
        return 0;
    if (!strcmp(state->fault, "library_mismatch")) {
        printf("Failed to initialize NVML: Driver/library version mismatch\n");
        return 18;
    }
    if (!strcmp(state->fault, "no_permission")) {
        printf("Failed to initialize NVML: Insufficient Permissions\n");
        return 4;
    }
    printf("Failed to initialize NVML: Unknown Error\n");
    return 255;
}

/* `--name=value` or `--name value`: the value, or NULL if this isn't that option. */
static const char *option_value(const char *name, char **arguments, int *i)
{
    size_t length = strlen(name);
    if (strncmp(arguments[*i], name, length))
        return NULL;
    if (arguments[*i][length] == '=')
        return arguments[*i] + length + 1;
    if (arguments[*i][length] || !arguments[*i + 1])
        return NULL;
    return arguments[++*i];
}

static int read_options(struct options *options, char **arguments)
{
    int i = 1;
    if (arguments[1] && !strcmp(arguments[1], "topo")) {
        options->topology = arguments[2] && (!strcmp(arguments[2], "-m") ||
                                             !strcmp(arguments[2], "--matrix"));
        i = options->topology ? 3 : 1;
    }
    for (; arguments[i]; i++) {
        const char *value;
        if (!strcmp(arguments[i], "-L") || !strcmp(arguments[i], "--list-gpus"))
            options->list = 1;
        else if (!strcmp(arguments[i], "--version"))
            options->version = 1;
        else if (!strcmp(arguments[i], "-h") || !strcmp(arguments[i], "--help"))
            options->help = 1;
        else if ((value = option_value("--query-gpu", arguments, &i)))
            options->query_gpu = value;
        else if ((value = option_value("--query-compute-apps", arguments, &i)))
            options->query_apps = value;
        else if ((value = option_value("--format", arguments, &i)))
            options->format = value;
        else if ((value = option_value("--id", arguments, &i)) ||
                 (value = option_value("-i", arguments, &i)))
            options->id = value;
        else {
            printf("Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n\n");
            return EXIT_BAD_ARGUMENT;
        }
    }
    if ((options->query_gpu || options->query_apps) && !has_format(options, "csv")) {
        printf("\"--format=\" switch is missing. It is required when querying.\n\n");
        return EXIT_BAD_ARGUMENT;
    }
    return 0;
}

static int run(const struct options *options, const struct state *state)
{
    int known = 0;
    if (options->version)
        return print_version(state);
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++)
        known |= chosen(options, state, gpu);
    if (!known) {
        printf("No devices were found\n");
        return EXIT_NOT_FOUND;
    }
    if (options->topology)
        return print_topology(state);
    if (options->list)
        return print_list(options, state);
    if (options->query_gpu)
        return query_gpus(options, state);
    if (options->query_apps)
        return query_processes(options, state);
    return print_table(options, state);
}

int main(int count, char **arguments)
{
    struct options options = {0};
    struct state *state;
    int code = read_options(&options, arguments);
    (void)count;
    if (code)
        return code;
    if (options.help) {
        printf("nvidia-smi over gpuspawner's simulated GPUs\n\n"
               "nvidia-smi topo -m\n"
               "nvidia-smi [-i ID] [-L | --version | --query-gpu=FIELDS --format=csv[,noheader][,nounits]"
               " | --query-compute-apps=FIELDS --format=csv]\n");
        return 0;
    }
    state = read_state();
    code = check_host(state);
    if (!code)
        code = run(&options, state);
    free(state);
    return code;
}
