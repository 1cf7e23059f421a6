/* Guards: documents that share rows train as documents with a row each.
 *
 * The same documents twice through the same weights: each in a row of its own, padded, and packed
 * into rows with sequences that end with them. The loss and every parameter's gradient agree,
 * norm-relative, within 1e-5 in fp32 and 1e-2 in bf16. That it can fail is shown by packing without
 * telling attention about it. (Positions alone would not show: rotary ones are relative.)
 *
 * usage: test_packing [--device=cuda]     77 where there is no GPU
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/module.h"
#include "trainer/optimizer.h"
#include "trainer/pipeline.h"

enum { VOCABULARY = 331, DOCUMENTS = 23, SEQUENCES = 16 };

/* How documents lie in rows. BLIND: attention is not told where they end. */
enum packing { APART, PACKED, BLIND };

static const struct kernels *kernels;
static uint64_t random_state = 1;

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(random_state >> 33);
}

static void check(int result, const struct error *error)
{
    if (result == 0)
        return;
    printf("not ok: %s\n", error->text);
    exit(1);
}

/* Inputs, targets and weights of one document, [length]. */
struct document {
    int64_t length;
    int32_t *tokens;
    float *weights; /* of the target that follows */
};

static struct document *make_documents(int64_t seq_length)
{
    struct document *documents = calloc(DOCUMENTS, sizeof(*documents));

    for (int d = 0; documents && d < DOCUMENTS; d++) {
        struct document *document = &documents[d];

        /* Most are short; some have one token, some fill a row. */
        document->length = d % 7 == 0   ? seq_length
                           : d % 7 == 1 ? 1
                                        : 1 + next_random() % (uint32_t)(seq_length / 3);
        document->tokens = calloc((size_t)document->length + 1, sizeof(int32_t));
        document->weights = calloc((size_t)document->length, sizeof(float));
        if (!document->tokens || !document->weights)
            exit(1);
        for (int64_t t = 0; t <= document->length; t++)
            document->tokens[t] = (int32_t)(next_random() % VOCABULARY);
        for (int64_t t = 0; t < document->length; t++)
            document->weights[t] = next_random() % 3 ? 1 : 0;
    }
    return documents;
}

static void free_documents(struct document *documents)
{
    for (int d = 0; d < DOCUMENTS; d++) {
        free(documents[d].tokens);
        free(documents[d].weights);
    }
    free(documents);
}

/* Where documents go: one a row, or as many as fit. */
struct places {
    int64_t rows;
    int64_t row[DOCUMENTS], column[DOCUMENTS];
};

static struct places find_places(const struct document *documents, int64_t seq_length, bool packed)
{
    struct places places = {0};
    int64_t used[DOCUMENTS] = {0};

    for (int d = 0; d < DOCUMENTS; d++) {
        int64_t row = packed ? 0 : places.rows;

        while (used[row] + documents[d].length > seq_length)
            row++;
        places.row[d] = row;
        places.column[d] = used[row];
        used[row] += documents[d].length;
        if (row >= places.rows)
            places.rows = row + 1;
    }
    return places;
}

static void put_document(struct batch *batch, const struct document *document, int64_t at)
{
    for (int64_t t = 0; t < document->length; t++) {
        batch->tokens[at + t] = document->tokens[t];
        batch->targets[at + t] = document->tokens[t + 1];
        batch->weights[at + t] = document->weights[t];
        batch->positions[at + t] = (int32_t)t;
    }
}

/* One row a microbatch. The documents of a row are in the order of their columns. */
static void fill_batch(struct batch *batch, const struct document *documents,
                       const struct places *places, enum packing packing)
{
    double sum = 0;

    for (int64_t i = 0; i < batch->microbatches * batch->seq_length; i++)
        batch->targets[i] = -1;
    for (int64_t m = 0; packing == PACKED && m < batch->microbatches; m++)
        batch->sequences[m].count = 0;
    for (int d = 0; d < DOCUMENTS; d++) {
        struct batch_sequences *sequences = &batch->sequences[places->row[d]];
        int64_t at = places->row[d] * batch->seq_length + places->column[d];

        put_document(batch, &documents[d], at);
        if (packing == PACKED)
            sequences->starts[sequences->count++] = (int32_t)places->column[d];
        /* Until the next one says otherwise, the padding belongs to this one. */
        sequences->starts[sequences->count] = (int32_t)batch->seq_length;
        for (int64_t t = 0; t < documents[d].length; t++)
            sum += (double)documents[d].weights[t];
    }
    batch->weight_sum = sum;
    batch_scale_weights(batch, 1 / sum);
}

struct outcome {
    double loss;
    float *gradients;
    int64_t count;
};

static struct outcome train(const struct model *model, const struct document *documents,
                            int64_t seq_length, enum packing packing)
{
    struct places places = find_places(documents, seq_length, packing != APART);
    const struct layout layout = {.tp = 1, .pp = 1, .dp = 1, .cp = 1};
    const struct world world = {.size = 1};
    const struct stage_work work = {.micro_batch = 1,
                                    .seq_length = seq_length,
                                    .sequences = packing == APART ? 1 : SEQUENCES,
                                    .microbatches = places.rows,
                                    .state = STAGE_TRAINS};
    struct outcome outcome = {0};
    struct comm_groups groups;
    struct stage stage;
    struct batch batch;
    struct error error = {0};

    check(comm_open(&groups, &world, &layout, kernels, &error), &error);
    check(stage_create(&stage, kernels, model, &layout, (struct layout_place){0}, &groups, &work,
                       &error),
          &error);
    check(batch_create(&batch, kernels, places.rows, 1, seq_length, &error), &error);
    stage_randomize(&stage, 3);
    fill_batch(&batch, documents, &places, packing);
    kernels->zero(stage.stream, stage.loss_sum, sizeof(double));
    optimizer_zero_gradients(&stage);
    pipeline_train(&stage, &batch);
    outcome.count = stage.parameters.elements;
    outcome.gradients = malloc((size_t)outcome.count * sizeof(float));
    if (!outcome.gradients)
        exit(1);
    kernels->to_host(stage.stream, &outcome.loss, stage.loss_sum, sizeof(double));
    kernels->to_host(stage.stream, outcome.gradients, stage.gradients,
                     (size_t)outcome.count * sizeof(float));
    check(kernels->stream_sync(stage.stream, &error), &error);
    batch_destroy(&batch);
    stage_destroy(&stage);
    comm_close(&groups);
    return outcome;
}

/* The largest norm-relative difference of a parameter's gradient, or of the loss. */
static double difference(const struct model *model, const struct outcome *a,
                         const struct outcome *b)
{
    const struct layout layout = {.tp = 1, .pp = 1, .dp = 1, .cp = 1};
    struct parameters parameters;
    struct error error = {0};
    double most = fabs(a->loss - b->loss) / fabs(a->loss);

    check(parameters_create(&parameters, model, &layout, (struct layout_place){0}, &error), &error);
    for (size_t i = 0; i < parameters.count; i++) {
        const struct parameter *parameter = &parameters.list[i];
        double squares = 0, differences = 0;

        for (int64_t j = parameter->offset; j < parameter->offset + parameter->count; j++) {
            squares += pow(a->gradients[j], 2);
            differences += pow((double)a->gradients[j] - (double)b->gradients[j], 2);
        }
        most = fmax(most, isfinite(differences) ? sqrt(differences / squares) : INFINITY);
    }
    parameters_destroy(&parameters);
    return most;
}

static struct model make_model(enum model_family family, int64_t head_dim, int64_t window)
{
    struct model model = {
        .layers = 3,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = head_dim,
        .hidden_size = 4 * head_dim,
        .ffn_size = 6 * head_dim,
        .vocab_size = VOCABULARY,
        .max_positions = 256,
        .norm_eps = 1e-5,
        .rope_theta = 1e4,
        .sliding_window = window,
        .init_std = 0.1,
    };

    model_set_family(&model, family);
    if (family == MODEL_FAMILY_FALCON)
        model.block = MODEL_BLOCK_PARALLEL;
    return model;
}

static bool test_model(const char *name, const struct model *model, int64_t seq_length)
{
    double tolerance = kernels->dtype == DTYPE_F32 ? 1e-5 : 1e-2, differences[2];
    struct document *documents = make_documents(seq_length);
    struct outcome apart = train(model, documents, seq_length, APART);
    bool good;

    for (int i = 0; i < 2; i++) {
        struct outcome packed = train(model, documents, seq_length, i == 0 ? PACKED : BLIND);

        differences[i] = difference(model, &apart, &packed);
        free(packed.gradients);
    }
    good = differences[0] <= tolerance && differences[1] > 5 * tolerance;
    printf("%s%s, %s: packed %.1e; attention not told %.1e\n", good ? "# " : "not ok: ", name,
           dtype_name(kernels->dtype), differences[0], differences[1]);
    free(apart.gradients);
    free_documents(documents);
    return good;
}

static void open_cuda(enum dtype dtype)
{
    static struct cuda_options options = {.attention = "auto"};
    static struct error error;
    const struct cuda_module *module = cuda_module_load(&error);

    options.dtype = dtype;
    if (!module || module->device_count() == 0) {
        printf("no GPU here\n");
        exit(77);
    }
    kernels = module->open(&options, &error);
    check(kernels ? 0 : -1, &error);
}

int main(int argc, char **argv)
{
    bool cuda = argc > 1 && strcmp(argv[1], "--device=cuda") == 0, good = true;
    /* On GPUs the widths of heads that have kernels of their own. */
    int64_t dim = cuda ? 64 : 8, length = cuda ? 256 : 48;
    struct model models[] = {
        make_model(MODEL_FAMILY_LLAMA, dim, 0),
        make_model(MODEL_FAMILY_LLAMA, cuda ? 128 : 12, 0),
        make_model(MODEL_FAMILY_MISTRAL, dim, length / 4),
        make_model(MODEL_FAMILY_QWEN2, dim, 0),
        make_model(MODEL_FAMILY_FALCON, dim, 0),
    };
    static const char *const names[] = {"llama", "llama, wider heads", "mistral, window", "qwen2",
                                        "falcon"};

    if (cuda)
        open_cuda(argc > 2 && strcmp(argv[2], "--dtype=fp32") == 0 ? DTYPE_F32 : DTYPE_BF16);
    else
        kernels = kernels_cpu(1);
    for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++)
        good = test_model(names[i], &models[i], length) && good;
    return good ? 0 : 1;
}
