#include "data/chat_template.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ini.h>
#include <jansson.h>

#include "core/settings.h"

/* A key of the file: patterns are made when all is read, since tokens are named in any order. */
struct entry {
    char *section, *name, *text;
    int line;
};

/* What is done with the messages of a role. */
struct role {
    char *name;
    struct chat_pattern text, with_system;
    bool folds_system; /* with_system is there */
};

struct chat_template {
    char *path;
    struct chat_words words;
    struct chat_pattern begin, end;
    struct role *roles;
    size_t role_count;
    char *default_system; /* NULL: none */
    bool alternate;       /* user and assistant take turns */
};

static int out_of_memory(struct error *error)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
}

/* --- the file --------------------------------------------------------------------------------- */

struct reader {
    FILE *stream;
    const char *path;
    int line;
    bool indented; /* the line is: it goes on with the key before */
    struct entry *list;
    size_t count;
    struct error *error;
};

static bool is_text(const char *line)
{
    json_t *text = json_string(line); /* NULL when it is no UTF-8 */

    json_decref(text);
    for (; text && *line; line++)
        if (iscntrl((unsigned char)*line) && !isspace((unsigned char)*line))
            return false;
    return text != NULL;
}

/* Lines for inih, which neither says where it is nor takes lines of any length. */
static char *read_line(char *text, int size, void *user)
{
    struct reader *reader = user;
    char *line = reader->error->status ? NULL : fgets(text, size, reader->stream);

    reader->line++;
    if (line && (int)strlen(line) == size - 1 && line[size - 2] != '\n' && !feof(reader->stream)) {
        error_set(reader->error, EXIT_STATUS_DATA,
                  "%s:%d: a line of more than %d characters; go on in the next one, behind spaces",
                  reader->path, reader->line, size - 2);
        return NULL;
    }
    if (line && !is_text(line)) {
        error_set(reader->error, EXIT_STATUS_DATA, "%s:%d: not text in UTF-8", reader->path,
                  reader->line);
        return NULL;
    }
    reader->indented = line && isspace((unsigned char)*line);
    return line;
}

static struct entry *find_entry(const struct reader *reader, const char *section, const char *name)
{
    for (size_t i = 0; i < reader->count; i++)
        if (strcmp(reader->list[i].section, section) == 0 &&
            strcmp(reader->list[i].name, name) == 0)
            return &reader->list[i];
    return NULL;
}

static const char *const whole_keys[] = {
    "begin", "end", "tokens", "optional-tokens", "alternate", "default-system", NULL};
static const char *const role_keys[] = {"text", "with-system", NULL};

static const char *const *keys_of(const char *section)
{
    return strcmp(section, "template") == 0 ? whole_keys : role_keys;
}

static int check_key(const struct reader *reader, const char *section, const char *name)
{
    if (!*section)
        return error_set(reader->error, EXIT_STATUS_DATA,
                         "%s:%d: %s: in no section; there are [template] and one for each role",
                         reader->path, reader->line, name);
    for (const char *const *known = keys_of(section); *known; known++)
        if (strcmp(*known, name) == 0)
            return 0;
    return error_set(reader->error, EXIT_STATUS_DATA, "%s:%d: unknown key %s; [%s] may have %s",
                     reader->path, reader->line, name, section,
                     keys_of(section) == whole_keys
                         ? "begin, end, tokens, optional-tokens, alternate and default-system"
                         : "text and with-system");
}

/* A line that goes on with the value of a key; inih takes every line for one that is indented. */
static int read_more(const struct reader *reader, struct entry *entry, const char *text)
{
    char *longer;

    if (!reader->indented)
        return error_set(reader->error, EXIT_STATUS_DATA, "%s:%d: %s is there twice", reader->path,
                         reader->line, entry->name);
    for (const char *const *known = keys_of(entry->section); *known; known++) {
        size_t length = strlen(*known);

        if (strncmp(text, *known, length) == 0 &&
            text[length + strspn(text + length, " \t")] == '=')
            return error_set(
                reader->error, EXIT_STATUS_DATA,
                "%s:%d: %s behind spaces goes on with %s; put it where the line begins",
                reader->path, reader->line, *known, entry->name);
    }
    /* Names of tokens are words. */
    if (asprintf(&longer, strstr(entry->name, "tokens") ? "%s %s" : "%s%s", entry->text, text) < 0)
        return out_of_memory(reader->error);
    free(entry->text);
    entry->text = longer;
    return 0;
}

/* inih calls this for every key, and again for every line that goes on with one. */
static int read_key(void *user, const char *section, const char *name, const char *text)
{
    struct reader *reader = user;
    struct entry *entry = find_entry(reader, section, name), *list;

    if (entry)
        return read_more(reader, entry, text) == 0;
    if (check_key(reader, section, name) < 0)
        return 0;
    list = realloc(reader->list, (reader->count + 1) * sizeof(*list));
    if (!list)
        return out_of_memory(reader->error) == 0;
    reader->list = list;
    entry = &list[reader->count++];
    *entry = (struct entry){strdup(section), strdup(name), strdup(text), reader->line};
    return (entry->section && entry->name && entry->text) || out_of_memory(reader->error) == 0;
}

static int read_file(struct reader *reader)
{
    int line;

    reader->stream = fopen(reader->path, "r");
    if (!reader->stream)
        return error_set_errno(reader->error, "%s: cannot read the chat template", reader->path);
    line = ini_parse_stream(read_line, reader, read_key, reader);
    fclose(reader->stream);
    if (reader->error->status)
        return -1;
    if (line != 0)
        return error_set(reader->error, line < 0 ? EXIT_STATUS_SYSTEM : EXIT_STATUS_DATA,
                         "%s:%d: not a section, a comment or a line of the form NAME = VALUE",
                         reader->path, line);
    return 0;
}

static void destroy_entries(struct reader *reader)
{
    for (size_t i = 0; i < reader->count; i++) {
        free(reader->list[i].section);
        free(reader->list[i].name);
        free(reader->list[i].text);
    }
    free(reader->list);
}

/* --- what is in it ---------------------------------------------------------------------------- */

static int add_word(struct chat_template *template, const char *text, size_t bytes, int32_t id,
                    struct error *error)
{
    return chat_words_add(&template->words, text, bytes, id) < 0 ? out_of_memory(error) : 0;
}

/* The token that begins or ends a text; *text stays NULL when the tokenizer has none. */
static int add_end(struct chat_template *template, const struct tokenizer *tokenizer, int32_t id,
                   const char **text, struct error *error)
{
    size_t bytes;
    const char *found = id < 0 ? NULL : tokenizer_text(tokenizer, id, &bytes);

    if (!found || bytes == 0)
        return 0;
    if (add_word(template, found, bytes, id, error) < 0)
        return -1;
    *text = template->words.list[template->words.count - 1].text;
    return 0;
}

/* One of the tokens that the template names. */
static int find_word(struct chat_template *template, const struct tokenizer *tokenizer,
                     const char *text, size_t bytes, const struct entry *entry, struct error *error)
{
    char *name = strndup(text, bytes);
    int32_t id = name ? tokenizer_find(tokenizer, name) : -1;
    int rc = 0;

    if (!name)
        rc = out_of_memory(error);
    else if (id >= 0)
        rc = add_word(template, text, bytes, id, error);
    else if (strcmp(entry->name, "tokens") == 0)
        rc = error_set(error, EXIT_STATUS_CONFIGURATION,
                       "%s:%d: the tokenizer has no token %s; choose another template, or add the "
                       "tokens of this one (%s) to the tokenizer and the model: --add-tokens of "
                       "mtllm-data tokenize, hf-to-h5 and mtllm-train",
                       template->path, entry->line, name, entry->text);
    free(name);
    return rc;
}

static int find_words(struct chat_template *template, const struct tokenizer *tokenizer,
                      const struct entry *entry, struct error *error)
{
    const char *at = entry ? entry->text : "";

    for (; *(at += strspn(at, " \t")); at += strcspn(at, " \t"))
        if (find_word(template, tokenizer, at, strcspn(at, " \t"), entry, error) < 0)
            return -1;
    return 0;
}

static struct role *find_role(const struct chat_template *template, const char *name)
{
    for (size_t i = 0; i < template->role_count; i++)
        if (strcmp(template->roles[i].name, name) == 0)
            return &template->roles[i];
    return NULL;
}

static struct role *add_role(struct chat_template *template, const char *name)
{
    struct role *roles = realloc(template->roles, (template->role_count + 1) * sizeof(*roles));

    if (!roles)
        return NULL;
    template->roles = roles;
    roles[template->role_count] = (struct role){.name = strdup(name)};
    return roles[template->role_count].name ? &roles[template->role_count++] : NULL;
}

static int read_role(struct chat_template *template, const struct entry *entry, struct error *error)
{
    struct role *role = find_role(template, entry->section);
    struct chat_pattern pattern;

    if (!role && !(role = add_role(template, entry->section)))
        return out_of_memory(error);
    if (chat_pattern_create(&pattern, entry->text, &template->words, error) < 0)
        return -1;
    if (strcmp(entry->name, "text") == 0) {
        role->text = pattern;
    } else {
        role->with_system = pattern;
        role->folds_system = true;
    }
    return 0;
}

static int read_whole(struct chat_template *template, const struct entry *entry,
                      struct error *error)
{
    if (strcmp(entry->name, "begin") == 0)
        return chat_pattern_create(&template->begin, entry->text, &template->words, error);
    if (strcmp(entry->name, "end") == 0)
        return chat_pattern_create(&template->end, entry->text, &template->words, error);
    if (strcmp(entry->name, "default-system") == 0) {
        template->default_system = chat_unescape(entry->text, error);
        return template->default_system ? 0 : -1;
    }
    if (strcmp(entry->name, "alternate") == 0) {
        template->alternate = strcmp(entry->text, "yes") == 0;
        if (!template->alternate && strcmp(entry->text, "no") != 0)
            return error_set(error, EXIT_STATUS_DATA, "\"%s\" is neither yes nor no", entry->text);
    }
    return 0; /* the tokens are known already */
}

static int check_template(const struct chat_template *template, struct error *error)
{
    bool trained = false;

    for (size_t i = 0; i < template->role_count; i++) {
        const struct role *role = &template->roles[i];

        if (role->text.count == 0)
            return error_set(error, EXIT_STATUS_DATA, "%s: [%s] has no text", template->path,
                             role->name);
        trained = trained || chat_pattern_is_trained(&role->text);
    }
    if (!trained)
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: nothing is to be learned: no text has {train}...{/train}",
                         template->path);
    return 0;
}

static int read_entries(struct chat_template *template, const struct reader *reader,
                        const struct tokenizer *tokenizer, struct error *error)
{
    struct chat_words *words = &template->words;

    if (find_words(template, tokenizer, find_entry(reader, "template", "tokens"), error) < 0 ||
        find_words(template, tokenizer, find_entry(reader, "template", "optional-tokens"), error) <
            0 ||
        add_end(template, tokenizer, tokenizer_bos(tokenizer), &words->bos, error) < 0 ||
        add_end(template, tokenizer, tokenizer_eos(tokenizer), &words->eos, error) < 0)
        return -1;
    for (size_t i = 0; i < reader->count; i++) {
        const struct entry *entry = &reader->list[i];

        if ((strcmp(entry->section, "template") == 0 ? read_whole(template, entry, error)
                                                     : read_role(template, entry, error)) < 0)
            return error_prefix(error, "%s:%d: %s: ", template->path, entry->line, entry->name);
    }
    return check_template(template, error);
}

/* --- opening ---------------------------------------------------------------------------------- */

/* The path of its file, to be freed. NULL: an error. */
static char *find_template(const char *name, struct error *error)
{
    const char *directory = getenv("MTLLM_TEMPLATES");
    size_t length = strlen(name);
    char *path, names[1024];
    int rc;

    if (!directory || !*directory)
        directory = MTLLM_TEMPLATES_DIR;
    if (strchr(name, '/') || (length > 4 && strcmp(name + length - 4, ".ini") == 0))
        rc = asprintf(&path, "%s", name);
    else
        rc = asprintf(&path, "%s/%s.ini", directory, name);
    if (rc < 0) {
        out_of_memory(error);
        return NULL;
    }
    if (access(path, F_OK) == 0)
        return path;
    settings_list_names(directory, names, sizeof(names));
    error_set(
        error, EXIT_STATUS_USAGE,
        "--chat-template=%s: there is no %s; known in %s: %s (or give the path of an ini file)",
        name, path, directory, names);
    free(path);
    return NULL;
}

int chat_template_open(struct chat_template **result, const char *name,
                       const struct tokenizer *tokenizer, struct error *error)
{
    struct chat_template *template = calloc(1, sizeof(*template));
    struct reader reader = {.error = error};
    int rc = -1;

    *result = NULL;
    error->status = 0;
    if (!template)
        return out_of_memory(error);
    template->path = find_template(name, error);
    if (template->path) {
        reader.path = template->path;
        rc = read_file(&reader);
        if (rc == 0)
            rc = read_entries(template, &reader, tokenizer, error);
    }
    destroy_entries(&reader);
    if (rc < 0)
        chat_template_close(template);
    else
        *result = template;
    return rc;
}

void chat_template_close(struct chat_template *template)
{
    if (!template)
        return;
    for (size_t i = 0; i < template->role_count; i++) {
        free(template->roles[i].name);
        chat_pattern_destroy(&template->roles[i].text);
        chat_pattern_destroy(&template->roles[i].with_system);
    }
    free(template->roles);
    free(template->default_system);
    chat_pattern_destroy(&template->begin);
    chat_pattern_destroy(&template->end);
    chat_words_destroy(&template->words);
    free(template->path);
    free(template);
}

const char *chat_template_path(const struct chat_template *template)
{
    return template->path;
}

/* --- rendering -------------------------------------------------------------------------------- */

static bool is_system(const struct chat_message *message)
{
    return strcmp(message->role, "system") == 0;
}

static int refuse_role(const struct chat_template *template, const struct chat_message *message,
                       size_t number, struct error *error)
{
    char names[256] = "", role[64];
    size_t used = 0;

    if (is_system(message))
        return error_set(error, EXIT_STATUS_DATA,
                         "message %zu: with this template a system message comes first, or not at "
                         "all",
                         number);
    snprintf(role, sizeof(role), "%s", message->role);
    for (char *at = role; *at; at++)
        if (iscntrl((unsigned char)*at))
            *at = '?';
    for (size_t i = 0; i < template->role_count && used < sizeof(names); i++)
        used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", i > 0 ? ", " : "",
                                 template->roles[i].name);
    return error_set(error, EXIT_STATUS_DATA,
                     "message %zu: the role \"%s\" is not in the template, which has %s", number,
                     role, names);
}

/* Whose turn it is, when it is somebody's: *turn counts the messages of user and assistant. */
static int check_turn(const struct chat_message *message, size_t number, size_t *turn,
                      struct error *error)
{
    const char *expected = *turn % 2 == 0 ? "user" : "assistant";

    if (strcmp(message->role, "user") != 0 && strcmp(message->role, "assistant") != 0)
        return 0;
    ++*turn;
    if (strcmp(message->role, expected) == 0)
        return 0;
    return error_set(error, EXIT_STATUS_DATA,
                     "message %zu: %s, where %s comes next: with this template they take turns, "
                     "the user first",
                     number, message->role, expected);
}

/* The system message while it waits for the first message that takes it in. */
struct waiting {
    const char *text; /* NULL: none */
    size_t bytes;
};

static int render_message(const struct chat_template *template, const struct chat_message *message,
                          size_t number, struct waiting *system, struct chat_text *text,
                          struct error *error)
{
    const struct role *role = find_role(template, message->role);
    struct chat_values values = {
        .content = message->content,
        .content_bytes = message->bytes,
        .role = CHAT_ROLE_USER,
        .untrained = message->untrained,
    };
    bool takes_in;

    if (!role)
        return refuse_role(template, message, number, error);
    /* What is not to be learned of the model's own is no user's either. */
    if (is_system(message) || chat_pattern_is_trained(&role->text))
        values.role = CHAT_ROLE_MARKUP;
    takes_in = system->text && role->folds_system;
    if (takes_in) {
        values.system = system->text;
        values.system_bytes = system->bytes;
        system->text = NULL;
    }
    return chat_pattern_expand(takes_in ? &role->with_system : &role->text, &values, text) < 0
               ? out_of_memory(error)
               : 0;
}

int chat_template_render(const struct chat_template *template, const struct chat_message *messages,
                         size_t count, struct chat_text *text, struct error *error)
{
    const struct chat_values nothing = {.content = "", .system = ""};
    struct chat_message standard = {.role = "system", .content = template->default_system};
    struct waiting system = {NULL, 0};
    bool in_place = find_role(template, "system") != NULL;
    size_t at = 0, turn = 0;

    if (count == 0)
        return error_set(error, EXIT_STATUS_DATA, "no message");
    if (chat_pattern_expand(&template->begin, &nothing, text) < 0)
        return out_of_memory(error);
    if (standard.content)
        standard.bytes = strlen(standard.content);
    if (is_system(&messages[0]))
        standard = messages[at++];
    if (standard.content && in_place) {
        if (render_message(template, &standard, 1, &system, text, error) < 0)
            return -1;
    } else if (standard.content) {
        system = (struct waiting){standard.content, standard.bytes};
    }
    for (; at < count; at++)
        if ((template->alternate && check_turn(&messages[at], at + 1, &turn, error) < 0) ||
            render_message(template, &messages[at], at + 1, &system, text, error) < 0)
            return -1;
    if (system.text)
        return error_set(error, EXIT_STATUS_DATA,
                         "message 1: no message that could take in the system message");
    return chat_pattern_expand(&template->end, &nothing, text) < 0 ? out_of_memory(error) : 0;
}
