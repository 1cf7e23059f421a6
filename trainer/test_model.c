/* Guards: the model computes what transformers computes, and trains as PyTorch trains it.
 *
 * Golden models (tests/golden/models): logits within 1e-4; the loss and gradient norm of 50 steps
 * of AdamW within 1e-4 and 1e-3 relative, and the logits after them. Also: weights start the same
 * whatever the layout, and every rank's parts tile every tensor; gradients with dropout are those
 * of the loss with dropout. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/hf_config.h"
#include "ckpt/safetensors.h"
#include "trainer/optimizer.h"
#include "trainer/pipeline.h"
#include "trainer/stage.h"

enum { BATCH = 2, LENGTH = 64, STEPS = 50 };

struct golden {
    char directory[512];
    struct model model;
    struct layout layout;
    struct world world;
    struct comm_groups groups;
    struct stage stage;
    struct batch batch;
    struct safetensors *values;
};

/* Every failure of a set-up is a failure of the test. */
static void check(int result, const struct error *error)
{
    if (result < 0)
        fail_msg("%s", error->text);
}

static void *read_tensor(const struct safetensors *set, const char *name)
{
    const struct safetensors_tensor *tensor = safetensors_find(set, name);
    struct error error = {0};
    void *data;

    assert_non_null(tensor);
    data = malloc((size_t)tensor->bytes);
    assert_non_null(data);
    check(safetensors_read(set, tensor, 0, tensor->bytes, data, &error), &error);
    return data;
}

static void read_model(struct golden *golden)
{
    char path[600], text[8192];
    struct error error = {0};
    size_t length;
    FILE *stream;

    snprintf(path, sizeof(path), "%s/config.json", golden->directory);
    stream = fopen(path, "r");
    assert_non_null(stream);
    length = fread(text, 1, sizeof(text), stream);
    fclose(stream);
    check(hf_config_read(&golden->model, text, length, path, &error), &error);
}

static void load_weights(struct golden *golden)
{
    struct safetensors *set;
    struct error error = {0};

    check(safetensors_open_model(&set, golden->directory, &error), &error);
    for (size_t i = 0; i < golden->stage.parameters.count; i++) {
        const struct parameter *parameter = &golden->stage.parameters.list[i];
        float *data = read_tensor(set, parameter->name);

        golden->stage.kernels->to_device(NULL, stage_weight(&golden->stage, parameter->offset),
                                         data + parameter->local.row * parameter->local.columns,
                                         (size_t)parameter->count * sizeof(float));
        free(data);
    }
    safetensors_close(set);
}

static void golden_open(struct golden *golden, const char *name)
{
    const char *source = getenv("srcdir");
    char path[600];
    const struct stage_work work = {.micro_batch = BATCH,
                                    .seq_length = LENGTH,
                                    .sequences = BATCH,
                                    .microbatches = 1,
                                    .state = STAGE_TRAINS};
    struct error error = {0};

    *golden = (struct golden){.layout = {.tp = 1, .pp = 1, .dp = 1, .cp = 1}, .world = {.size = 1}};
    snprintf(golden->directory, sizeof(golden->directory), "%s/tests/golden/models/%s",
             source ? source : ".", name);
    read_model(golden);
    snprintf(path, sizeof(path), "%s/golden.safetensors", golden->directory);
    check(safetensors_open(&golden->values, path, &error), &error);
    check(comm_open(&golden->groups, &golden->world, &golden->layout, kernels_cpu(1), &error),
          &error);
    check(stage_create(&golden->stage, kernels_cpu(1), &golden->model, &golden->layout,
                       (struct layout_place){0}, &golden->groups, &work, &error),
          &error);
    check(batch_create(&golden->batch, golden->stage.kernels, 1, BATCH, LENGTH, &error), &error);
    load_weights(golden);
}

static void golden_close(struct golden *golden)
{
    batch_destroy(&golden->batch);
    stage_destroy(&golden->stage);
    comm_close(&golden->groups);
    safetensors_close(golden->values);
}

/* Where the logits of the batch go. */
struct seen {
    float *logits;
    int64_t vocabulary;
};

static void see(void *user, int64_t microbatch, int64_t row, int64_t rows, const void *logits)
{
    struct seen *seen = user;

    (void)microbatch;
    memcpy(seen->logits + row * seen->vocabulary, logits,
           (size_t)(rows * seen->vocabulary) * sizeof(float));
}

/* The greatest absolute difference between the logits of `input_ids` and a golden tensor. */
static double logits_difference(struct golden *golden, const char *name)
{
    int64_t count = BATCH * LENGTH * golden->model.vocab_size;
    struct seen seen = {malloc((size_t)count * sizeof(float)), golden->model.vocab_size};
    int32_t *ids = read_tensor(golden->values, "input_ids");
    float *expected = read_tensor(golden->values, name);
    double most = 0;

    assert_non_null(seen.logits);
    memcpy(golden->batch.tokens, ids, BATCH * LENGTH * sizeof(*ids));
    memset(golden->batch.targets, 0, BATCH * LENGTH * sizeof(*ids));
    pipeline_evaluate(&golden->stage, &golden->batch,
                      &(struct pipeline_observer){.see = see, .user = &seen});
    for (int64_t i = 0; i < count; i++)
        most = fmax(most, isnan(seen.logits[i]) ? INFINITY : fabs(seen.logits[i] - expected[i]));
    free(seen.logits);
    free(ids);
    free(expected);
    return most;
}

/* One row of train_ids: [BATCH, LENGTH + 1]. */
static void set_batch(struct batch *batch, const int32_t *ids)
{
    for (int i = 0; i < BATCH; i++) {
        memcpy(batch->tokens + i * LENGTH, ids + i * (LENGTH + 1), LENGTH * sizeof(*ids));
        memcpy(batch->targets + i * LENGTH, ids + i * (LENGTH + 1) + 1, LENGTH * sizeof(*ids));
    }
    for (int i = 0; i < BATCH * LENGTH; i++)
        batch->weights[i] = 1.0F / (BATCH * LENGTH);
}

static void train_as_pytorch(struct golden *golden)
{
    int32_t *ids = read_tensor(golden->values, "train_ids");
    float *losses = read_tensor(golden->values, "train_loss");
    float *norms = read_tensor(golden->values, "train_grad_norm");
    struct settings *settings = settings_create();
    struct optimizer optimizer;
    struct error error = {0};

    assert_non_null(settings);
    check(optimizer_create(&optimizer, settings, &golden->stage, &error), &error);
    for (int step = 0; step < STEPS; step++) {
        double squared;

        set_batch(&golden->batch, ids + step * BATCH * (LENGTH + 1));
        optimizer_zero_gradients(&golden->stage);
        *golden->stage.loss_sum = 0;
        pipeline_train(&golden->stage, &golden->batch);
        check(optimizer_squared_norm(&optimizer, &golden->stage, &squared, &error), &error);
        optimizer_update(&optimizer, &golden->stage, 1e-3, 0.1, step + 1, sqrt(squared), 1);
        if (!(fabs(*golden->stage.loss_sum / losses[step] - 1) <= 1e-4) ||
            !(fabs(sqrt(squared) / norms[step] - 1) <= 1e-3))
            fail_msg("step %d: loss %.7f, norm %.6f; PyTorch has %.7f and %.6f", step + 1,
                     *golden->stage.loss_sum, sqrt(squared), losses[step], norms[step]);
    }
    optimizer_destroy(&optimizer, &golden->stage);
    settings_destroy(settings);
    free(ids);
    free(losses);
    free(norms);
}

static void test_golden(void **state)
{
    static const char *const names[] = {
        "llama-mha",    "llama-gqa-tied", "codellama",  "llama-bias",   "llama-headdim",
        "llama-linear", "llama-dynamic",  "llama-yarn", "llama-llama3", "mistral",
        "qwen2",        "falcon-7b",      "falcon-40b",
    };
    (void)state;

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        struct golden golden;
        double before, after;

        golden_open(&golden, names[i]);
        before = logits_difference(&golden, "logits");
        assert_true(before <= 1e-4);
        train_as_pytorch(&golden);
        after = logits_difference(&golden, "final_logits");
        print_message("%s: logits differ by %.1e, after 50 steps by %.1e\n", names[i], before,
                      after);
        /* AdamW's first steps are as long whatever the gradient is, and of its sign: rounding
         * decides that of one which is nearly nothing. */
        assert_true(after <= 5e-3);
        golden_close(&golden);
    }
}

static const struct model small = {
    .layers = 4,
    .hidden_size = 16,
    .ffn_size = 24,
    .heads = 4,
    .kv_heads = 4,
    .head_dim = 4,
    .vocab_size = 13,
    .max_positions = 8,
    .norm_eps = 1e-5,
    .rope_theta = 1e4,
    .init_std = 0.02,
};

static const struct stage_work evaluation = {
    .micro_batch = 1, .seq_length = 8, .sequences = 1, .microbatches = 1, .state = STAGE_EVALUATES};

/* Put the initial weights of one rank into the whole model's, by tensor; every element once. */
static void gather_rank(const struct layout *layout, int rank, const struct parameters *whole,
                        float *weights)
{
    struct comm_groups groups = {0};
    struct stage stage;
    struct error error = {0};

    check(stage_create(&stage, kernels_cpu(1), &small, layout, layout_place(layout, rank), &groups,
                       &evaluation, &error),
          &error);
    stage_randomize(&stage, 7);
    for (size_t i = 0; i < stage.parameters.count; i++) {
        const struct parameter *part = &stage.parameters.list[i];
        const struct parameter *all = parameters_find(whole, part->role, part->layer);
        const float *from = stage_weight(&stage, part->offset);

        assert_non_null(all);
        assert_string_equal(part->name, all->name);
        for (int64_t r = 0; r < part->local.rows; r++) {
            float *to =
                weights + all->offset + (part->local.row + r) * all->shape[1] + part->local.column;

            for (int64_t c = 0; c < part->local.columns; c++) {
                /* once, and then the same from others that hold it */
                assert_true(part->counts ? isnan(to[c])
                                         : to[c] == from[r * part->local.columns + c]);
                to[c] = from[r * part->local.columns + c];
            }
        }
    }
    stage_destroy(&stage);
}

/* Mark what a piece covers; every element of the rank's weights once, and of its state too. */
static void mark_piece(const struct piece *piece, char *weights, char *state)
{
    const struct tile *local = &piece->parameter->local, *tile = &piece->tile;
    int64_t row = tile->row - local->row, column = tile->column - local->column;

    assert_int_equal(piece->count, tile->rows * tile->columns);
    assert_true(tile->rows == 1 || tile->columns == local->columns);
    assert_int_equal(piece->offset, piece->parameter->offset + row * local->columns + column);
    for (int64_t i = 0; i < piece->count; i++) {
        assert_int_equal(weights[piece->offset + i]++, 0);
        assert_int_equal(state[piece->state + i]++, 0);
    }
}

/* Whatever their number, replicas share all elements of all parameters. */
static void test_replicas_share(void **unused)
{
    struct error error = {0};
    (void)unused;

    for (int dp = 1; dp <= 9; dp++)
        for (int tp = 1; tp <= 2; tp++) {
            struct layout layout = {.tp = tp, .pp = 1, .dp = dp, .cp = 1};
            struct parameters parameters;
            char *weights;

            check(parameters_create(&parameters, &small, &layout, (struct layout_place){0}, &error),
                  &error);
            weights = calloc((size_t)parameters.elements, 1);
            assert_non_null(weights);
            for (int replica = 0; replica < dp; replica++) {
                char *state = calloc((size_t)(parameters.elements / dp), 1);
                struct piece *pieces;
                size_t count;

                assert_non_null(state);
                check(parameters_share(&parameters, replica, dp, &pieces, &count, &error), &error);
                for (size_t i = 0; i < count; i++)
                    mark_piece(&pieces[i], weights, state);
                free(state);
                free(pieces);
            }
            for (size_t i = 0; i < parameters.count; i++)
                for (int64_t j = 0; j < parameters.list[i].count; j++)
                    assert_int_equal(weights[parameters.list[i].offset + j], 1);
            free(weights);
            parameters_destroy(&parameters);
        }
}

static void test_layouts_start_alike(void **state)
{
    static const struct layout layouts[] = {
        {.tp = 2, .pp = 1, .dp = 1, .cp = 1},
        {.tp = 1, .pp = 4, .dp = 1, .cp = 1},
        {.tp = 4, .pp = 2, .dp = 1, .cp = 1},
        {.tp = 1, .pp = 2, .dp = 1, .cp = 1, .chunks = 2},
    };
    struct layout one = {.tp = 1, .pp = 1, .dp = 1, .cp = 1};
    struct comm_groups groups = {0};
    struct stage stage;
    struct error error = {0};
    (void)state;

    check(stage_create(&stage, kernels_cpu(1), &small, &one, (struct layout_place){0}, &groups,
                       &evaluation, &error),
          &error);
    stage_randomize(&stage, 7);
    for (size_t i = 0; i < sizeof(layouts) / sizeof(*layouts); i++) {
        size_t bytes = (size_t)stage.parameters.elements * sizeof(float);
        float *weights = malloc(bytes);

        assert_non_null(weights);
        memset(weights, 0xff, bytes); /* NaN */
        for (int rank = 0; rank < layout_world(&layouts[i]); rank++)
            gather_rank(&layouts[i], rank, &stage.parameters, weights);
        for (size_t j = 0; j < stage.parameters.count; j++) {
            const struct parameter *parameter = &stage.parameters.list[j];

            assert_memory_equal(weights + parameter->offset,
                                stage_weight(&stage, parameter->offset),
                                (size_t)parameter->count * sizeof(float));
        }
        free(weights);
    }
    stage_destroy(&stage);
}

/* The loss with dropout, the same every time, and gradients of it. */
static double dropping_loss(struct stage *stage, const struct batch *batch)
{
    *stage->loss_sum = 0;
    optimizer_zero_gradients(stage);
    pipeline_train(stage, batch);
    return *stage->loss_sum;
}

/* How far the change of the loss in a random direction is from what the gradient says, relative. */
static double direction_error(struct stage *stage, const struct batch *batch, double step)
{
    float *weights = stage->weights;
    int64_t count = stage->parameters.elements;
    float *direction = calloc((size_t)count, sizeof(float)), *kept = calloc((size_t)count, 4);
    double slope = 0, losses[2];

    assert_true(direction && kept);
    memcpy(kept, weights, (size_t)count * sizeof(float));
    (void)dropping_loss(stage, batch);
    for (int64_t i = 0; i < count; i++) {
        direction[i] = (float)((double)random() / RAND_MAX - 0.5);
        slope += (double)direction[i] * (double)stage->gradients[i];
    }
    for (int side = 0; side < 2; side++) {
        for (int64_t i = 0; i < count; i++)
            weights[i] = kept[i] + direction[i] * (float)(side ? step : -step);
        losses[side] = dropping_loss(stage, batch);
    }
    memcpy(weights, kept, (size_t)count * sizeof(float));
    free(direction);
    free(kept);
    return fabs((losses[1] - losses[0]) / (2 * step) / slope - 1);
}

static void test_dropout_gradient(void **state)
{
    static const enum model_family families[] = {MODEL_FAMILY_LLAMA, MODEL_FAMILY_FALCON};
    const struct layout layout = {.tp = 1, .pp = 1, .dp = 1, .cp = 1};
    const struct world world = {.size = 1};
    struct stage_work work = {.micro_batch = 2,
                              .seq_length = 8,
                              .sequences = 2,
                              .microbatches = 1,
                              .state = STAGE_TRAINS,
                              .dropout = {.rate = 0.4, .attention = 0.3, .seed = 9}};
    struct error error = {0};
    (void)state;

    for (int i = 0; i < 4; i++) {
        struct model model = small;
        struct comm_groups groups;
        struct stage stage;
        struct batch batch;

        model_set_family(&model, families[i / 2]);
        model.block = i < 2 ? MODEL_BLOCK_SEQUENTIAL : MODEL_BLOCK_PARALLEL;
        model.init_std = 0.3;
        work.dropout.lima = i % 2;
        check(comm_open(&groups, &world, &layout, kernels_cpu(1), &error), &error);
        check(stage_create(&stage, kernels_cpu(1), &model, &layout, (struct layout_place){0},
                           &groups, &work, &error),
              &error);
        check(batch_create(&batch, stage.kernels, 1, 2, 8, &error), &error);
        stage_randomize(&stage, 11);
        batch.sequences[0].first_row = 64;
        for (int t = 0; t < 16; t++) {
            batch.tokens[t] = (int32_t)(random() % model.vocab_size);
            batch.targets[t] = (int32_t)(random() % model.vocab_size);
            batch.weights[t] = 1.0F / 16;
        }
        for (int k = 0; k < 4; k++)
            assert_true(direction_error(&stage, &batch, 1e-3) < 0.01);
        batch_destroy(&batch);
        stage_destroy(&stage);
        comm_close(&groups);
    }
}

/* Reference: of 4 layers and a rate of 0.3. */
static void test_dropout_rates(void **state)
{
    const struct stage_dropout lima = {.rate = 0.3, .lima = true}, plain = {.rate = 0.3};
    (void)state;

    for (int layer = 0; layer < 4; layer++) {
        assert_true(fabs(stage_dropout_rate(&lima, 4, layer) - 0.1 * layer) < 1e-15);
        assert_true(stage_dropout_rate(&plain, 4, layer) == 0.3);
    }
    assert_true(stage_dropout_rate(&lima, 4, -1) == 0);
    assert_true(stage_dropout_rate(&plain, 4, -1) == 0.3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_replicas_share),
        cmocka_unit_test(test_layouts_start_alike),
        cmocka_unit_test(test_dropout_gradient),
        cmocka_unit_test(test_dropout_rates),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
