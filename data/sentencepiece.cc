/* SentencePiece speaks C++ only; this is the one file that does. No exception leaves it. */
extern "C" {
#include "core/error.h"
}
#include "data/tokenizer_kind.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

/* Exported by the library, in no public header; where it is not there its messages stay. */
namespace sentencepiece
{
namespace logging
{
__attribute__((weak)) void SetMinLogLevel(int level);
}
} // namespace sentencepiece

/* What becomes of a line end between two letters. */
enum line_end {
    LINE_END_UNKNOWN, /* nothing that could be relied on: never cut */
    LINE_END_SPACE,   /* a space: a part begins behind it, and brings the space itself, as the
                         prefix that the model puts before any text */
    LINE_END_TOKEN,   /* tokens of its own: a part begins with it, and the prefix that the model
                         puts before it is taken away again */
};

struct sentencepiece_tokenizer {
    struct tokenizer base = {};
    sentencepiece::SentencePieceProcessor processor;
    enum line_end line_end = LINE_END_UNKNOWN;
    int space_id = -1;                    /* of a lone U+2581 */
    std::map<int32_t, std::string> added; /* tokens behind those of the model */
};

namespace
{

const char space_symbol[] = "\xe2\x96\x81"; /* U+2581, SentencePiece's visible space */

enum : size_t {
    PART_BYTES = 8 << 10,
    ENCODE_LIMIT_BYTES = 1 << 30, /* SentencePiece counts in int */
};

using ids_t = std::vector<int>;

ids_t encode(const sentencepiece::SentencePieceProcessor &processor, const std::string &text)
{
    ids_t ids;

    if (!processor.Encode(text, &ids).ok())
        ids.clear();
    return ids;
}

/* Can this piece hold both what is before a line end and what is behind it? */
bool piece_crosses(const std::string &piece, enum line_end line_end)
{
    if (line_end == LINE_END_SPACE) {
        /* A space with something else in front of it. */
        size_t letter = 0, width = sizeof(space_symbol) - 1;

        while (piece.compare(letter, width, space_symbol) == 0)
            letter += width;
        return piece.find(space_symbol, letter) != std::string::npos;
    }
    return piece.find('\n') != std::string::npos &&
           piece.find_first_not_of('\n') != std::string::npos;
}

/* Does `whole` consist of `before`, then `after` without its first `skip` ids? */
bool joins(const ids_t &whole, const ids_t &before, const ids_t &after, size_t skip)
{
    ids_t joined = before;

    if (after.size() <= skip)
        return false;
    joined.insert(joined.end(), after.begin() + static_cast<long>(skip), after.end());
    return joined == whole;
}

/* Find out on examples how the model treats line ends, then ask of every piece whether it could
 * make an exception. */
enum line_end find_line_end(const sentencepiece_tokenizer &tokenizer)
{
    static const char *const examples[][2] = {
        {"a", "b"}, {"the end.", "In the beginning"}, {"1,", "2"}, {"x", "(y)"}};
    const auto &processor = tokenizer.processor;
    bool space = true, token = true;

    if (processor.IsUnknown(tokenizer.space_id))
        return LINE_END_UNKNOWN; /* unknown neighbours become one token, across any cut */
    for (const auto &example : examples) {
        const std::string before = example[0], after = example[1];
        const ids_t whole = encode(processor, before + "\n" + after);
        const ids_t first = encode(processor, before);
        const ids_t line = encode(processor, "\n" + after);
        const size_t skip = !line.empty() && line[0] == tokenizer.space_id;

        space = space && joins(whole, first, encode(processor, after), 0);
        token = token && joins(whole, first, line, skip) && line.size() > skip &&
                !processor.IsUnknown(line[skip]);
    }
    if (!space && !token)
        return LINE_END_UNKNOWN;
    const enum line_end line_end = space ? LINE_END_SPACE : LINE_END_TOKEN;
    for (int id = 0; id < processor.GetPieceSize(); id++)
        if (!processor.IsControl(id) && piece_crosses(processor.IdToPiece(id), line_end))
            return LINE_END_UNKNOWN;
    return line_end;
}

/* Characters that no model turns into a space and that combine with nothing before them. */
bool safe_after(unsigned char byte)
{
    return (byte > ' ' && byte < 0x7f) || (byte >= 0xc3 && byte <= 0xc5) || byte == 0xd0 ||
           byte == 0xd1 || (byte >= 0xe4 && byte <= 0xe9);
}

bool safe_before(unsigned char byte)
{
    return byte > ' ' && byte < 0x7f;
}

int read_file(const std::string &path, std::string &bytes, struct error *error)
{
    char buffer[1 << 16];
    size_t size;
    int result = 0;
    std::FILE *stream = std::fopen(path.c_str(), "rb");

    if (!stream)
        return error_set_errno(error, "%s: cannot open the tokenizer", path.c_str());
    while ((size = std::fread(buffer, 1, sizeof(buffer), stream)) > 0)
        bytes.append(buffer, size);
    if (std::ferror(stream))
        result = error_set_errno(error, "%s: cannot read the tokenizer", path.c_str());
    std::fclose(stream);
    return result;
}

int load(sentencepiece_tokenizer &tokenizer, const std::string &path, struct error *error)
{
    const auto &processor = tokenizer.processor;
    std::string bytes;

    if (read_file(path, bytes, error) < 0)
        return -1;
    if (sentencepiece::logging::SetMinLogLevel)
        sentencepiece::logging::SetMinLogLevel(3);
    const auto loaded = tokenizer.processor.LoadFromSerializedProto(bytes);
    if (!loaded.ok())
        return error_set(error, EXIT_STATUS_DATA,
                         "%s: not a SentencePiece model, or a damaged one (%zu bytes)",
                         path.c_str(), bytes.size());
    tokenizer.space_id = processor.PieceToId(space_symbol);
    tokenizer.line_end = find_line_end(tokenizer);
    tokenizer.base.vocab_size = processor.GetPieceSize();
    tokenizer.base.bos = processor.bos_id();
    tokenizer.base.eos = processor.eos_id();
    tokenizer.base.unk = processor.unk_id();
    return 0;
}

int exception_error(struct error *error, const std::exception &exception)
{
    return error_set(error, EXIT_STATUS_SYSTEM, "SentencePiece: %s", exception.what());
}

const sentencepiece_tokenizer *self(const struct tokenizer *base)
{
    return reinterpret_cast<const sentencepiece_tokenizer *>(base);
}

void close(struct tokenizer *base)
{
    delete self(base);
}

size_t part(const struct tokenizer *base, const char *text, size_t bytes, bool whole,
            size_t *scanned)
{
    const auto *tokenizer = self(base);
    size_t at = *scanned > PART_BYTES ? *scanned : PART_BYTES;

    if (tokenizer->line_end == LINE_END_UNKNOWN)
        return whole ? bytes : 0;
    while (at + 1 < bytes) {
        const void *found = std::memchr(text + at, '\n', bytes - at);

        if (!found)
            at = bytes - 1;
        else
            at = static_cast<size_t>(static_cast<const char *>(found) - text);
        if (at + 1 >= bytes)
            break;
        if (safe_before(static_cast<unsigned char>(text[at - 1])) &&
            safe_after(static_cast<unsigned char>(text[at + 1])))
            return at;
        at++;
    }
    *scanned = at;
    return whole ? bytes : 0;
}

int encode_part(const struct tokenizer *base, const char *text, size_t bytes, bool first,
                struct token_list *list, struct error *error)
{
    const auto *tokenizer = self(base);
    size_t skip = 0;

    if (bytes > ENCODE_LIMIT_BYTES)
        return error_set(error, EXIT_STATUS_DATA,
                         "%zu bytes without a line end where the text could be divided; at most"
                         " %zu can be encoded",
                         bytes, static_cast<size_t>(ENCODE_LIMIT_BYTES));
    try {
        std::vector<int> ids;
        const bool begins_behind = !first && tokenizer->line_end == LINE_END_SPACE;
        const auto status = tokenizer->processor.Encode(
            absl::string_view(text + begins_behind, bytes - begins_behind), &ids);

        if (!status.ok())
            return error_set(error, EXIT_STATUS_DATA, "SentencePiece: %s",
                             status.ToString().c_str());
        if (!first && tokenizer->line_end == LINE_END_TOKEN && !ids.empty())
            skip = ids[0] == tokenizer->space_id;
        if (token_list_reserve(list, static_cast<int64_t>(ids.size())) < 0)
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        for (size_t i = skip; i < ids.size(); i++)
            list->ids[list->count++] = ids[i];
    } catch (const std::exception &exception) {
        return exception_error(error, exception);
    }
    return 0;
}

int encode_spans(const struct tokenizer *base, const char *text, size_t bytes, const uint8_t *,
                 struct token_list *list, struct token_span **spans, struct error *error)
{
    try {
        sentencepiece::ImmutableSentencePieceText encoded;
        const auto status =
            self(base)->processor.Encode(absl::string_view(text, bytes), encoded.mutable_proto());

        if (!status.ok())
            return error_set(error, EXIT_STATUS_DATA, "SentencePiece: %s",
                             status.ToString().c_str());
        const auto pieces = encoded.pieces();
        auto *to = static_cast<struct token_span *>(
            std::malloc((pieces.size() + 1) * sizeof(struct token_span)));
        if (!to || token_list_reserve(list, static_cast<int64_t>(pieces.size())) < 0) {
            std::free(to);
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        }
        for (size_t i = 0; i < pieces.size(); i++) {
            list->ids[list->count++] = static_cast<int32_t>(pieces[i].id());
            to[i] = {pieces[i].begin(), pieces[i].end()};
        }
        *spans = to;
    } catch (const std::exception &exception) {
        return exception_error(error, exception);
    }
    return 0;
}

int32_t add(struct tokenizer *base, const char *text, int32_t id)
{
    try {
        reinterpret_cast<sentencepiece_tokenizer *>(base)->added[id] = text;
    } catch (const std::exception &) {
        return -1;
    }
    return id;
}

int32_t find(const struct tokenizer *base, const char *text)
{
    const auto &processor = self(base)->processor;
    const int id = processor.PieceToId(text);

    for (const auto &token : self(base)->added)
        if (token.second == text)
            return token.first;
    return processor.IsUnknown(id) && processor.IdToPiece(id) != text ? -1 : id;
}

/* The text of a piece or of an added token; nullptr where ids have a gap. */
const std::string *find_text(const sentencepiece_tokenizer &tokenizer, int32_t id)
{
    const auto token = tokenizer.added.find(id);

    if (token != tokenizer.added.end())
        return &token->second;
    return id < tokenizer.processor.GetPieceSize() ? &tokenizer.processor.IdToPiece(id) : nullptr;
}

const char *text_of(const struct tokenizer *base, int32_t id, size_t *bytes)
{
    const std::string *text = find_text(*self(base), id);

    *bytes = text ? text->size() : 0;
    return text ? text->c_str() : nullptr;
}

/* Added tokens stand between texts that are decoded by themselves. */
sentencepiece::util::Status decode_around(const sentencepiece_tokenizer &tokenizer,
                                          const int32_t *ids, int64_t count, std::string &text)
{
    for (int64_t i = 0, end; i < count; i = end + 1) {
        std::string part;

        for (end = i; end < count && ids[end] < tokenizer.processor.GetPieceSize();)
            end++;
        const auto status = tokenizer.processor.Decode(std::vector<int>(ids + i, ids + end), &part);

        if (!status.ok())
            return status;
        text += part;
        if (end < count) {
            const std::string *token = find_text(tokenizer, ids[end]);

            text += token ? *token : "";
        }
    }
    return {};
}

int decode(const struct tokenizer *base, const int32_t *ids, int64_t count, char **text,
           size_t *bytes, struct error *error)
{
    try {
        std::string decoded;
        const auto status = decode_around(*self(base), ids, count, decoded);

        if (!status.ok())
            return error_set(error, EXIT_STATUS_DATA, "SentencePiece: %s",
                             status.ToString().c_str());
        *text = static_cast<char *>(std::malloc(decoded.size() + 1));
        if (!*text)
            return error_set(error, EXIT_STATUS_SYSTEM, "out of memory");
        std::memcpy(*text, decoded.c_str(), decoded.size() + 1);
        *bytes = decoded.size();
    } catch (const std::exception &exception) {
        return exception_error(error, exception);
    }
    return 0;
}

const struct tokenizer_kind kind = {close, part, encode_part, encode_spans,
                                    add,   find, text_of,     decode};

} // namespace

int sentencepiece_open(struct tokenizer **result, const char *path, struct error *error)
{
    sentencepiece_tokenizer *opened = nullptr;

    try {
        opened = new sentencepiece_tokenizer;
        opened->base.kind = &kind;
        if (load(*opened, path, error) == 0) {
            *result = &opened->base;
            return 0;
        }
    } catch (const std::exception &exception) {
        exception_error(error, exception);
        error_prefix(error, "%s: ", path);
    }
    delete opened;
    return -1;
}
