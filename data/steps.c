#include "data/steps.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <oniguruma.h>
#include <utf8proc.h>

#include "data/normal_form.h"
#include "data/unicode.h"

/* GPT-2's words. */
static const char byte_level_words[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* More than any tokenizer has. */
enum { STEPS_MOST = 32 };

/* Tries of one search, as many as Oniguruma gives a single match. */
enum { RETRIES_MOST = 10000000 };

enum step_type {
    STEP_PREPEND,
    STEP_REPLACE, /* all that matches, by text */
    STEP_UNICODE, /* NFC and the like */
    STEP_SPLIT,
    STEP_BYTES, /* each byte by its character */
    STEP_SPACE_IN_FRONT,
    STEP_METASPACE /* U+2581 for spaces, and one in front */
};

enum behavior { ISOLATED, REMOVED, CONTIGUOUS, WITH_PREVIOUS, WITH_NEXT, BEHAVIORS };

static const char *const behavior_names[BEHAVIORS] = {"Isolated", "Removed", "Contiguous",
                                                      "MergedWithPrevious", "MergedWithNext"};

enum scheme { SCHEME_ALWAYS, SCHEME_FIRST, SCHEME_NEVER };

struct step {
    enum step_type type;
    char *text; /* to prepend, to put in, or that stands for a space; the literal to split at */
    size_t bytes;
    regex_t *regex;                     /* what matches; or */
    char *literal;                      /* this text; or */
    bool (*matches)(int32_t character); /* such characters, each by itself */
    size_t literal_bytes;
    enum behavior behavior;
    bool invert;
    enum scheme scheme;
    utf8proc_option_t form;
};

struct steps {
    struct step *list;
    size_t count;
};

/* --- matches ---------------------------------------------------------------------------------- */

/* Of one step in one piece; places are relative to the piece. */
struct match {
    size_t begin, end;
    bool is_match; /* else what lies between two */
};

/* Looks for matches one after the other. */
struct finder {
    const struct step *step;
    const struct piece *piece;
    size_t at;
    struct match found; /* that comes next, behind what lies before it */
    bool has_found;
    OnigRegion *region;
};

/* 1 and the next match at or behind `at`, 0 when there is none. */
static int find_regex(struct finder *finder, size_t at, struct match *match, struct error *error)
{
    const OnigUChar *text = (const OnigUChar *)finder->piece->text,
                    *end = text + finder->piece->bytes;
    int found = onig_search(finder->step->regex, text, end, text + at, end, finder->region,
                            ONIG_OPTION_NONE);

    if (found == ONIG_MISMATCH)
        return 0;
    if (found < 0)
        return error_set(error, EXIT_STATUS_DATA,
                         "a regular expression of the tokenizer gives up "
                         "on this text (Oniguruma: %d)",
                         found);
    *match = (struct match){(size_t)finder->region->beg[0], (size_t)finder->region->end[0], true};
    return 1;
}

static int find_match(struct finder *finder, size_t at, struct match *match, struct error *error)
{
    const struct step *step = finder->step;

    if (step->regex)
        return find_regex(finder, at, match, error);
    if (step->literal) {
        const char *found = memmem(finder->piece->text + at, finder->piece->bytes - at,
                                   step->literal, step->literal_bytes);

        if (!found)
            return 0;
        match->begin = (size_t)(found - finder->piece->text);
        match->end = match->begin + step->literal_bytes;
    } else {
        for (;; at = match->end) {
            if (at >= finder->piece->bytes)
                return 0;
            match->begin = at;
            if (step->matches(
                    next_character(finder->piece->text, finder->piece->bytes, at, &match->end)))
                break;
        }
    }
    match->is_match = true;
    return 1;
}

/* 1 and the next stretch of the piece, matching or not; 0 at its end. */
static int next_stretch(struct finder *finder, struct match *stretch, struct error *error)
{
    int rc;

    if (finder->has_found) {
        finder->has_found = false;
        *stretch = finder->found;
        finder->at = stretch->end;
        return 1;
    }
    for (size_t from = finder->at; finder->at < finder->piece->bytes;) {
        rc = from > finder->piece->bytes ? 0 : find_match(finder, from, &finder->found, error);
        if (rc < 0)
            return -1;
        /* One of nothing is passed over. */
        if (rc > 0 && finder->found.end == finder->found.begin) {
            if (finder->found.begin >= finder->piece->bytes)
                rc = 0;
            else {
                next_character(finder->piece->text, finder->piece->bytes, finder->found.begin,
                               &from);
                continue;
            }
        }
        if (rc > 0 && finder->found.begin == finder->at) {
            *stretch = finder->found;
            finder->at = stretch->end;
            return 1;
        }
        finder->has_found = rc > 0;
        *stretch =
            (struct match){finder->at, rc > 0 ? finder->found.begin : finder->piece->bytes, false};
        finder->at = stretch->end;
        return 1;
    }
    return 0;
}

/* --- steps ------------------------------------------------------------------------------------ */

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

/* Take the piece over in the stretches of its matches. */
static int split_piece(struct finder *finder, struct pieces *to, struct error *error)
{
    const struct step *step = finder->step;
    struct match stretch;
    bool first = true, before = false; /* was the last stretch a match? */
    int rc;

    while ((rc = next_stretch(finder, &stretch, error)) > 0) {
        bool is_match = stretch.is_match != step->invert;
        bool goes_on = !first && ((step->behavior == CONTIGUOUS && is_match == before) ||
                                  (step->behavior == WITH_PREVIOUS && is_match && !before) ||
                                  (step->behavior == WITH_NEXT && !is_match && before));

        if ((!goes_on && pieces_end(to) < 0) ||
            (!(step->behavior == REMOVED && is_match) &&
             pieces_take(to, finder->piece, stretch.begin, stretch.end) < 0))
            return out_of_memory(error);
        first = false;
        before = is_match;
    }
    return rc < 0 ? -1 : pieces_end(to) < 0 ? out_of_memory(error) : 0;
}

static int replace_in_piece(struct finder *finder, struct pieces *to, struct error *error)
{
    struct match stretch;
    int rc;

    while ((rc = next_stretch(finder, &stretch, error)) > 0)
        if ((stretch.is_match ? pieces_put(to, finder->step->text, finder->step->bytes,
                                           finder->piece, stretch.end - 1)
                              : pieces_take(to, finder->piece, stretch.begin, stretch.end)) < 0)
            return out_of_memory(error);
    return rc < 0 ? -1 : pieces_end(to) < 0 ? out_of_memory(error) : 0;
}

static int with_matches(const struct step *step, const struct piece *piece, struct pieces *to,
                        struct error *error)
{
    struct finder finder = {.step = step, .piece = piece};
    int rc;

    if (step->regex && !(finder.region = onig_region_new()))
        return out_of_memory(error);
    rc = step->type == STEP_REPLACE ? replace_in_piece(&finder, to, error)
                                    : split_piece(&finder, to, error);
    if (finder.region)
        onig_region_free(finder.region, 1);
    return rc;
}

static int map_bytes(const struct piece *piece, struct pieces *to, struct error *error)
{
    for (size_t i = 0; i < piece->bytes; i++) {
        utf8proc_uint8_t character[4];
        utf8proc_ssize_t length =
            utf8proc_encode_char(byte_character((unsigned char)piece->text[i]), character);

        if (pieces_put(to, (const char *)character, (size_t)length, piece, i) < 0)
            return out_of_memory(error);
    }
    return pieces_end(to) < 0 ? out_of_memory(error) : 0;
}

static bool begins_with(const struct piece *piece, const char *what, size_t bytes)
{
    return piece->bytes >= bytes && memcmp(piece->text, what, bytes) == 0;
}

static int metaspace(const struct step *step, const struct piece *piece, bool begins,
                     struct pieces *to)
{
    bool has_one = begins_with(piece, " ", 1) || begins_with(piece, step->text, step->bytes);

    if (!has_one && (step->scheme == SCHEME_ALWAYS || (step->scheme == SCHEME_FIRST && begins)) &&
        pieces_put(to, step->text, step->bytes, piece, 0) < 0)
        return -1;
    for (size_t i = 0; i < piece->bytes; i++)
        if ((piece->text[i] == ' ' ? pieces_put(to, step->text, step->bytes, piece, i)
                                   : pieces_take(to, piece, i, i + 1)) < 0)
            return -1;
    return pieces_end(to);
}

static int apply_to_piece(const struct step *step, const struct piece *piece, bool begins,
                          struct pieces *to, struct error *error)
{
    int rc = 0;

    switch (step->type) {
    case STEP_REPLACE:
    case STEP_SPLIT:
        return with_matches(step, piece, to, error);
    case STEP_UNICODE:
        rc = normal_form_append(step->form, piece, to);
        break;
    case STEP_BYTES:
        return map_bytes(piece, to, error);
    case STEP_METASPACE:
        rc = metaspace(step, piece, begins, to);
        break;
    case STEP_PREPEND:
    case STEP_SPACE_IN_FRONT:
        if (step->type == STEP_PREPEND || *piece->text != ' ')
            rc = pieces_put(to, step->text, step->bytes, piece, 0);
        if (rc == 0)
            rc = pieces_take(to, piece, 0, piece->bytes);
        if (rc == 0)
            rc = pieces_end(to);
        break;
    }
    return rc < 0 ? out_of_memory(error) : 0;
}

int steps_apply(const struct steps *steps, struct pieces_pair *pair, bool begins,
                struct error *error)
{
    size_t most = pieces_growth(&pair->now);

    for (size_t i = 0; i < steps->count; i++) {
        struct pieces swap = pair->now;
        size_t begin = 0;

        pieces_clear(&pair->next);
        for (size_t j = 0; j < pair->now.count; j++) {
            size_t end = pair->now.ends[j];
            struct piece piece = pieces_slice(&pair->now, begin, end - begin);

            if (apply_to_piece(&steps->list[i], &piece, begins && j == 0, &pair->next, error) < 0)
                return -1;
            begin = end;
        }
        if (pieces_check_growth(&pair->next, most, error) < 0)
            return -1;
        pair->now = pair->next;
        pair->next = swap;
    }
    return 0;
}

/* --- reading ---------------------------------------------------------------------------------- */

static struct step *add_step(struct steps *steps, enum step_type type)
{
    struct step *list = realloc(steps->list, (steps->count + 1) * sizeof(*list));

    if (!list)
        return NULL;
    steps->list = list;
    list[steps->count] = (struct step){.type = type};
    return &list[steps->count++];
}

static int set_text(struct step *step, const char *text, struct error *error)
{
    step->text = strdup(text);
    step->bytes = strlen(text);
    return step->text ? 0 : out_of_memory(error);
}

static int compile(struct step *step, const char *pattern, struct error *error)
{
    OnigErrorInfo info;
    OnigUChar reason[ONIG_MAX_ERROR_MESSAGE_LEN];
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    char *whole;
    int rc;

    /* Does nothing a second time. */
    onig_initialize(encodings, 1);
    onig_set_retry_limit_in_search(RETRIES_MOST);
    whole = unicode_pattern(pattern);
    if (!whole)
        return out_of_memory(error);
    rc = onig_new(&step->regex, (const OnigUChar *)whole, (const OnigUChar *)whole + strlen(whole),
                  ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, &info);
    free(whole);
    if (rc == ONIG_NORMAL)
        return 0;
    step->regex = NULL;
    onig_error_code_to_str(reason, rc, &info);
    return error_set(error, EXIT_STATUS_DATA, "pattern %.200s: %s", pattern, (const char *)reason);
}

/* {"Regex": ...} or {"String": ...} */
static int read_pattern(struct step *step, const json_t *json, struct error *error)
{
    const json_t *pattern = json_object_get(json, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));

    if (regex)
        return compile(step, regex, error);
    if (!literal || !*literal)
        return error_set(error, EXIT_STATUS_DATA, "a pattern is neither Regex nor String");
    step->literal = strdup(literal);
    step->literal_bytes = strlen(literal);
    return step->literal ? 0 : out_of_memory(error);
}

static int read_behavior(struct step *step, const json_t *json, struct error *error)
{
    const char *name = json_string_value(json_object_get(json, "behavior"));

    for (int i = 0; name && i < BEHAVIORS; i++)
        if (strcmp(name, behavior_names[i]) == 0) {
            step->behavior = (enum behavior)i;
            return 0;
        }
    return error_set(error, EXIT_STATUS_DATA, "behavior %.100s is not supported",
                     name ? name : "(none)");
}

static int unsupported(const char *kind, const char *type, struct error *error)
{
    return error_set(error, EXIT_STATUS_DATA, "%s of type %.100s is not supported", kind,
                     type ? type : "(none)");
}

static int read_normalizer(struct steps *steps, json_t *json, struct error *error)
{
    static const struct {
        const char *type;
        int form;
    } forms[] = {
        {"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
        {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
        {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
        {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
    };
    const char *type = json_string_value(json_object_get(json, "type")), *text;
    struct step *step;

    for (size_t i = 0; type && i < sizeof(forms) / sizeof(*forms); i++)
        if (strcmp(type, forms[i].type) == 0) {
            step = add_step(steps, STEP_UNICODE);
            if (step)
                step->form = (utf8proc_option_t)forms[i].form;
            return step ? 0 : out_of_memory(error);
        }
    if (type && strcmp(type, "Prepend") == 0) {
        text = json_string_value(json_object_get(json, "prepend"));
        step = add_step(steps, STEP_PREPEND);
        return step ? set_text(step, text ? text : "", error) : out_of_memory(error);
    }
    if (type && strcmp(type, "Replace") == 0) {
        text = json_string_value(json_object_get(json, "content"));
        step = add_step(steps, STEP_REPLACE);
        return !step                                         ? out_of_memory(error)
               : set_text(step, text ? text : "", error) < 0 ? -1
                                                             : read_pattern(step, json, error);
    }
    return unsupported("normalizer", type, error);
}

static int read_split(struct steps *steps, json_t *json, struct error *error)
{
    struct step *step = add_step(steps, STEP_SPLIT);

    if (!step)
        return out_of_memory(error);
    step->invert = json_is_true(json_object_get(json, "invert"));
    return read_pattern(step, json, error) < 0 ? -1 : read_behavior(step, json, error);
}

static int add_characters(struct steps *steps, bool (*matches)(int32_t), enum behavior behavior,
                          struct error *error)
{
    struct step *step = add_step(steps, STEP_SPLIT);

    if (!step)
        return out_of_memory(error);
    step->matches = matches;
    step->behavior = behavior;
    return 0;
}

static int read_byte_level(struct steps *steps, json_t *json, struct error *error)
{
    const json_t *use_regex = json_object_get(json, "use_regex");
    struct step *step;

    if (!json_is_false(json_object_get(json, "add_prefix_space"))) {
        step = add_step(steps, STEP_SPACE_IN_FRONT);
        if (!step || set_text(step, " ", error) < 0)
            return out_of_memory(error);
    }
    if (!json_is_false(use_regex)) {
        step = add_step(steps, STEP_SPLIT);
        if (!step)
            return out_of_memory(error);
        step->behavior = ISOLATED;
        if (compile(step, byte_level_words, error) < 0)
            return -1;
    }
    return add_step(steps, STEP_BYTES) ? 0 : out_of_memory(error);
}

static int read_metaspace(struct steps *steps, json_t *json, struct error *error)
{
    const char *replacement = json_string_value(json_object_get(json, "replacement"));
    const char *scheme = json_string_value(json_object_get(json, "prepend_scheme"));
    const json_t *old = json_object_get(json, "add_prefix_space");
    struct step *step = add_step(steps, STEP_METASPACE);

    if (!step || set_text(step, replacement ? replacement : "\xe2\x96\x81", error) < 0)
        return out_of_memory(error);
    step->scheme = scheme && strcmp(scheme, "first") == 0 ? SCHEME_FIRST
                   : (scheme && strcmp(scheme, "never") == 0) || (!scheme && json_is_false(old))
                       ? SCHEME_NEVER
                       : SCHEME_ALWAYS;
    if (json_is_false(json_object_get(json, "split")))
        return 0;
    replacement = step->text;
    step = add_step(steps, STEP_SPLIT);
    if (!step || !(step->literal = strdup(replacement)))
        return out_of_memory(error);
    step->literal_bytes = strlen(step->literal);
    step->behavior = WITH_NEXT;
    return 0;
}

static int read_pre_tokenizer(struct steps *steps, json_t *json, struct error *error)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    struct step behavior = {.behavior = ISOLATED};

    if (!type)
        return unsupported("pre_tokenizer", type, error);
    if (strcmp(type, "Split") == 0)
        return read_split(steps, json, error);
    if (strcmp(type, "ByteLevel") == 0)
        return read_byte_level(steps, json, error);
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(steps, json, error);
    if (strcmp(type, "Digits") == 0)
        return add_characters(steps, is_numeric,
                              json_is_true(json_object_get(json, "individual_digits")) ? ISOLATED
                                                                                       : CONTIGUOUS,
                              error);
    if (strcmp(type, "Punctuation") == 0)
        return read_behavior(&behavior, json, error) < 0
                   ? -1
                   : add_characters(steps, is_punctuation, behavior.behavior, error);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return add_characters(steps, is_white_space, REMOVED, error);
    return unsupported("pre_tokenizer", type, error);
}

/* One after the other, those of a Sequence too. */
static int read_steps(struct steps *steps, json_t *json, const char *member, int depth,
                      int (*read)(struct steps *, json_t *, struct error *), struct error *error)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    json_t *part;
    size_t i;

    if (!json || json_is_null(json))
        return 0;
    if (depth == 0 || steps->count > STEPS_MOST)
        return error_set(error, EXIT_STATUS_DATA, "%s: too many in a Sequence", member);
    if (!type || strcmp(type, "Sequence") != 0)
        return read(steps, json, error);
    json_array_foreach(json_object_get(json, member), i, part)
    {
        if (read_steps(steps, part, member, depth - 1, read, error) < 0)
            return -1;
    }
    return 0;
}

static int create(struct steps **steps, json_t *json, const char *member,
                  int (*read)(struct steps *, json_t *, struct error *), struct error *error)
{
    *steps = calloc(1, sizeof(**steps));
    if (!*steps)
        return out_of_memory(error);
    if (read_steps(*steps, json, member, 4, read, error) == 0)
        return 0;
    steps_destroy(*steps);
    *steps = NULL;
    return -1;
}

int steps_create_normalizer(struct steps **steps, json_t *json, struct error *error)
{
    return create(steps, json, "normalizers", read_normalizer, error);
}

int steps_create_pre_tokenizer(struct steps **steps, json_t *json, struct error *error)
{
    return create(steps, json, "pretokenizers", read_pre_tokenizer, error);
}

void steps_destroy(struct steps *steps)
{
    if (!steps)
        return;
    for (size_t i = 0; i < steps->count; i++) {
        free(steps->list[i].text);
        free(steps->list[i].literal);
        if (steps->list[i].regex)
            onig_free(steps->list[i].regex);
    }
    free(steps->list);
    free(steps);
}
