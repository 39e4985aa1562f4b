/* nvidia-smi --query-gpu and --query-compute-apps. */
#include "nvidia_smi.h"

int lost(const struct gpu *gpu)
{
    return gpu->fault && strcmp(gpu->fault, "reset_required") != 0;
}

int needs_reset(const struct gpu *gpu)
{
    return gpu->fault && !lost(gpu);
}

int index_of(const struct state *state, const struct gpu *gpu)
{
    return (int)(gpu - state->gpus);
}

/* ---- fields of --query-gpu ---- */

static void put_number(char *out, int value)
{
    if (value == ABSENT)
        strcpy(out, "[N/A]");
    else
        snprintf(out, VALUE_SIZE, "%d", value);
}

static void put_text(char *out, const char *value)
{
    snprintf(out, VALUE_SIZE, "%s", value ? value : "[N/A]");
}

static void put_switch(char *out, int value)
{
    put_text(out, value == ABSENT ? NULL : value ? "Enabled" : "Disabled");
}

static void put_watts(char *out, int milliwatts)
{
    if (milliwatts == ABSENT)
        strcpy(out, "[N/A]");
    else
        snprintf(out, VALUE_SIZE, "%d.%02d", milliwatts / 1000, milliwatts % 1000 / 10);
}

const char *compute_mode_name(const struct gpu *gpu)
{
    return gpu->compute_mode == 3   ? "Exclusive_Process"
           : gpu->compute_mode == 2 ? "Prohibited"
                                    : "Default";
}

int utilization(const struct gpu *gpu)
{
    return gpu->mig == 1 ? ABSENT : gpu->utilization_percent;
}

static int memory_free_mib(const struct gpu *gpu)
{
    return gpu->memory_total_mib - gpu->memory_reserved_mib - gpu->memory_used_mib;
}

/* Who a GPU is: answered also by one that needs a reset. 1 if there is such a field. */
static int put_identity(char *out, const char *field, const struct state *state, const struct gpu *gpu)
{
    if (!strcmp(field, "index"))
        put_number(out, index_of(state, gpu));
    else if (!strcmp(field, "count"))
        put_number(out, state->gpu_count);
    else if (!strcmp(field, "uuid") || !strcmp(field, "gpu_uuid"))
        put_text(out, gpu->uuid);
    else if (!strcmp(field, "name") || !strcmp(field, "gpu_name"))
        put_text(out, gpu->name);
    else if (!strcmp(field, "serial") || !strcmp(field, "gpu_serial"))
        put_text(out, gpu->serial);
    else if (!strcmp(field, "pci.bus_id") || !strcmp(field, "gpu_bus_id"))
        put_text(out, gpu->bus_id);
    else if (!strcmp(field, "driver_version"))
        put_text(out, state->driver);
    else if (!strcmp(field, "compute_cap") && gpu->compute_capability_major != ABSENT)
        snprintf(out, VALUE_SIZE, "%d.%d", gpu->compute_capability_major,
                 gpu->compute_capability_minor);
    else if (!strcmp(field, "compute_cap"))
        put_text(out, NULL);
    else if (!strcmp(field, "timestamp")) {
        time_t now = time(NULL);
        strftime(out, VALUE_SIZE, "%Y/%m/%d %H:%M:%S.000", localtime(&now));
    } else
        return 0;
    return 1;
}

/* How it is doing. The unit, "" if none; NULL if there is no such field. */
static const char *put_condition(char *out, const char *field, const struct gpu *gpu)
{
    const char *unit = "";
    if (!strcmp(field, "memory.total"))
        put_number(out, gpu->memory_total_mib), unit = "MiB";
    else if (!strcmp(field, "memory.used"))
        put_number(out, gpu->memory_used_mib), unit = "MiB";
    else if (!strcmp(field, "memory.free"))
        put_number(out, memory_free_mib(gpu)), unit = "MiB";
    else if (!strcmp(field, "memory.reserved"))
        put_number(out, gpu->memory_reserved_mib), unit = "MiB";
    else if (!strcmp(field, "utilization.gpu"))
        put_number(out, utilization(gpu)), unit = "%";
    else if (!strcmp(field, "utilization.memory"))
        put_number(out, utilization(gpu) == ABSENT ? ABSENT : utilization(gpu) / 2), unit = "%";
    else if (!strcmp(field, "fan.speed"))
        put_number(out, gpu->fan_percent), unit = "%";
    else if (!strcmp(field, "temperature.gpu"))
        put_number(out, temperature_celsius(gpu));
    else if (!strcmp(field, "power.draw"))
        put_watts(out, power_milliwatts(gpu)), unit = "W";
    else if (!strcmp(field, "power.limit"))
        put_watts(out, gpu->power_limit_watts == ABSENT ? ABSENT : gpu->power_limit_watts * 1000),
            unit = "W";
    else if (!strcmp(field, "compute_mode"))
        put_text(out, compute_mode_name(gpu));
    else if (!strcmp(field, "pstate"))
        put_text(out, gpu->utilization_percent > 0 ? "P0" : "P8");
    else if (!strcmp(field, "persistence_mode"))
        put_text(out, "Enabled");
    else if (!strcmp(field, "mig.mode.current"))
        put_switch(out, gpu->mig);
    else if (!strcmp(field, "mig.mode.pending"))
        put_switch(out, mig_pending(gpu));
    else if (!strcmp(field, "ecc.mode.current") || !strcmp(field, "ecc.mode.pending"))
        put_switch(out, gpu->ecc);
    else if (!strcmp(field, "ecc.errors.uncorrected.volatile.total"))
        put_number(out, gpu->ecc == 1 ? gpu->ecc_errors : ABSENT);
    else
        return NULL;
    return unit;
}

static const char *put_field(char *out, const char *field, const struct state *state,
                             const struct gpu *gpu)
{
    const char *unit = "";
    if (put_identity(out, field, state, gpu))
        return unit;
    unit = put_condition(out, field, gpu);
    if (unit && needs_reset(gpu))
        strcpy(out, "[GPU requires reset]");
    return unit;
}

/* The next of a list like "name, uuid", or NULL at its end. */
static char *next_field(char **list)
{
    char *field = *list;
    if (!*field)
        return NULL;
    *list = split(field, ',');
    while (*field == ' ')
        field++;
    split(field, ' ');
    return field;
}

int has_format(const struct options *options, const char *word)
{
    return options->format && strstr(options->format, word) != NULL;
}

int chosen(const struct options *options, const struct state *state, const struct gpu *gpu)
{
    char number[16];
    snprintf(number, sizeof number, "%d", index_of(state, gpu));
    if (!options->id)
        return 1;
    return !strcmp(options->id, number) || !strcmp(options->id, gpu->uuid) ||
           (gpu->bus_id && text_equal_ignoring_case(options->id, gpu->bus_id));
}

int report_lost(const struct gpu *gpu)
{
    const char *name = gpu->bus_id ? gpu->bus_id : gpu->uuid;
    if (!strcmp(gpu->fault, "unreachable")) {
        printf("Unable to determine the device handle for GPU%s: Unknown Error\n", name);
        return EXIT_UNKNOWN;
    }
    printf("Unable to determine the device handle for GPU %s: GPU is lost.  "
           "Reboot the system to recover this GPU\n", name);
    return EXIT_GPU_LOST;
}

static int print_header(const char *query, const struct options *options, const struct state *state)
{
    static const struct gpu nobody;
    char list[4096], value[VALUE_SIZE], *rest = list, *field;
    const char *separator = "";
    snprintf(list, sizeof list, "%s", query);
    while ((field = next_field(&rest))) {
        const char *unit = put_field(value, field, state, &nobody);
        if (!unit) {
            printf("Field \"%s\" is not a valid field to query.\n\n", field);
            return EXIT_BAD_ARGUMENT;
        }
        if (has_format(options, "noheader"))
            continue;
        printf("%s%s", separator, field);
        if (*unit && !has_format(options, "nounits"))
            printf(" [%s]", unit);
        separator = ", ";
    }
    if (!has_format(options, "noheader"))
        printf("\n");
    return 0;
}

int query_gpus(const struct options *options, const struct state *state)
{
    int code = print_header(options->query_gpu, options, state);
    if (code)
        return code;
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++) {
        char list[4096], value[VALUE_SIZE], *rest = list, *field;
        const char *separator = "";
        if (!chosen(options, state, gpu))
            continue;
        if (lost(gpu)) {
            code = report_lost(gpu);
            continue;
        }
        snprintf(list, sizeof list, "%s", options->query_gpu);
        while ((field = next_field(&rest))) {
            const char *unit = put_field(value, field, state, gpu);
            printf("%s%s", separator, value);
            if (unit && *unit && value[0] != '[' && !has_format(options, "nounits"))
                printf(" %s", unit);
            separator = ", ";
        }
        printf("\n");
    }
    return code;
}

/* ---- processes ---- */

void put_process_name(char *out, unsigned pid)
{
    char path[64];
    ssize_t length;
    snprintf(path, sizeof path, "/proc/%u/exe", pid);
    length = readlink(path, out, VALUE_SIZE - 1);
    if (length < 0)
        strcpy(out, "[Not Found]");
    else
        out[length] = 0;
}

static int put_process_field(char *out, const char *field, const struct gpu *gpu,
                             const struct process *process, const char **unit)
{
    *unit = "";
    if (!strcmp(field, "pid"))
        snprintf(out, VALUE_SIZE, "%u", process->pid);
    else if (!strcmp(field, "process_name") || !strcmp(field, "name"))
        put_process_name(out, process->pid);
    else if (!strcmp(field, "gpu_uuid"))
        put_text(out, gpu->uuid);
    else if (!strcmp(field, "gpu_name"))
        put_text(out, gpu->name);
    else if (!strcmp(field, "gpu_bus_id"))
        put_text(out, gpu->bus_id);
    else if (!strcmp(field, "used_memory") || !strcmp(field, "used_gpu_memory"))
        snprintf(out, VALUE_SIZE, "%llu", process->memory_mib), *unit = "MiB";
    else
        return 0;
    return 1;
}

/* One line of --query-compute-apps; the header line where there is no process. */
static int print_process(const struct options *options, const struct gpu *gpu,
                         const struct process *process)
{
    static const struct gpu no_gpu;
    static const struct process no_process;
    char list[4096], value[VALUE_SIZE], *rest = list, *field;
    const char *separator = "", *unit;
    snprintf(list, sizeof list, "%s", options->query_apps);
    while ((field = next_field(&rest))) {
        if (!put_process_field(value, field, gpu ? gpu : &no_gpu, process ? process : &no_process,
                               &unit)) {
            printf("Field \"%s\" is not a valid field to query.\n\n", field);
            return EXIT_BAD_ARGUMENT;
        }
        printf("%s%s", separator, process ? value : field);
        if (*unit && !has_format(options, "nounits"))
            printf(process ? " %s" : " [%s]", unit);
        separator = ", ";
    }
    printf("\n");
    return 0;
}

int query_processes(const struct options *options, const struct state *state)
{
    int code = 0;
    if (!has_format(options, "noheader"))
        code = print_process(options, NULL, NULL);
    for (const struct gpu *gpu = state->gpus; gpu < state->gpus + state->gpu_count; gpu++)
        for (int i = 0; i < gpu->process_count && !code; i++)
            if (chosen(options, state, gpu) && !gpu->fault && gpu->processes[i].kind != GRAPHICS)
                code = print_process(options, gpu, &gpu->processes[i]);
    return code;
}
