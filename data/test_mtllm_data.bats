# Guards: mtllm-data turns text into the tokens that SentencePiece's own program gives, the same
# bytes for any number of threads; says by name what it cannot use; and leaves nothing behind that
# looks whole when it does not finish.

setup() {
    source_directory=$(cd "$srcdir" && pwd)
    program=$builddir/data/mtllm-data
    model=$source_directory/tests/golden/tokenizers/sentencepiece/tokenizer.model
    cd "$BATS_TEST_TMPDIR"
    unset background
}

teardown() {
    [ -z "$background" ] || kill -KILL "$background" 2>/dev/null || true
}

needs_sentencepiece() {
    run "$program" tokenize --tokenizer="$model" --output=probe /dev/null
    [ "$status" -ne 78 ] || skip "built without SentencePiece"
}

# english LINES: made-up prose with blank lines, odd spaces, and letters of other scripts.
english() {
    awk -v lines="$1" 'BEGIN {
        srand(7)
        count = split("In the beginning was a word and it said nothing. na\303\257ve \316\261\316\262\316\263 \346\227\245\346\234\254\350\252\236 \320\241\320\273\320\276\320\262\320\276 \360\237\230\200 1,234.5 (x) \"quoted\" wherefore 7:12 unto", words, " ")
        for (i = 0; i < lines; i++) {
            line = ""
            for (n = int(rand() * 14); n > 0; n--)
                line = line words[1 + int(rand() * count)] (rand() < 0.05 ? "  " : " ")
            print rand() < 0.2 ? line : substr(line, 1, length(line) - 1)
        }
    }'
}

# json_lines: each line of standard input as {"id": N, "text": "..."}.
json_lines() {
    awk '{ gsub(/\\/, "\\\\"); gsub(/"/, "\\\""); printf "{\"id\": %d, \"text\": \"%s\"}\n", NR, $0 }'
}

tokenize() {
    "$program" tokenize --tokenizer="$model" "$@"
}

# Every document of PREFIX, a line of ids each.
all_ids() {
    local documents
    documents=$("$program" info "$1" | awk '$1 == "documents" { print $2 }')
    for ((i = 0; i < documents; i++)); do
        "$program" show "$1" "$i"
    done
}

wait_for() { # wait_for SECONDS COMMAND...
    local tries=$(($1 * 20))
    shift
    while ! "$@" 2>/dev/null >&2; do
        [ $((tries--)) -gt 0 ] || return 1
        sleep 0.05
    done
}

ended() { # a zombie, or gone
    ! grep -q '^State:.[^Z]' "/proc/$1/status"
}

@test "documents are what spm_encode gives line by line" {
    needs_sentencepiece
    command -v spm_encode >/dev/null || skip "no spm_encode (Debian: sentencepiece)"
    english 400 | grep -v '^ *$' >text
    if [ -r /usr/share/common-licenses/GPL-2 ]; then
        grep -v '^[[:space:]]*$' /usr/share/common-licenses/GPL-2 | tr -d '\f' | head -100 >>text
    fi
    spm_encode --model="$model" --output_format=id <text >expected
    tokenize --output=out --split-documents=line --eod=no text
    all_ids out >found
    cmp expected found
    json_lines <text >text.jsonl
    tokenize --output=out2 --eod=no text.jsonl
    cmp out.bin out2.bin
    cmp out.idx out2.idx
}

@test "models trained here: the same" {
    needs_sentencepiece
    command -v spm_train >/dev/null || skip "no spm_train (Debian: sentencepiece)"
    english 2000 | grep -v '^ *$' >text
    head -300 text >some
    for kind in unigram bpe; do
        spm_train --input=text --model_prefix=$kind --model_type=$kind --vocab_size=120 \
            --hard_vocab_limit=false >/dev/null 2>&1
        model=$PWD/$kind.model
        spm_encode --model="$model" --output_format=id <some >expected
        tokenize --output=out --split-documents=line --eod=no some
        all_ids out >found
        cmp expected found
    done
    # Line ends are spaces to this model: one document is its lines, one behind the other.
    spm_encode --model="$model" --output_format=id <text | tr '\n' ' ' | sed 's/ $//' >expected
    tokenize --output=one --eod=no text
    "$program" show one 0 | tr -d '\n' >found
    cmp expected found
}

@test "any number of threads gives the same bytes" {
    needs_sentencepiece
    english 30000 >one.txt
    english 9000 | tac >two.txt
    english 9000 | json_lines >three.jsonl
    for threads in 1 2 7; do
        for how in file paragraph line; do
            tokenize --output=out-$how-$threads --threads=$threads --split-documents=$how --bos=yes \
                one.txt three.jsonl two.txt
        done
    done
    for how in file paragraph line; do
        for threads in 2 7; do
            cmp out-$how-1.bin out-$how-$threads.bin
            cmp out-$how-1.idx out-$how-$threads.idx
        done
    done
    # The text comes back from its tokens.
    "$program" show out-file-1 0 --tokenizer="$model" >back
    cmp one.txt back
}

@test "a piece of a large document is what the document gives" {
    needs_sentencepiece
    english 20000 >text
    tokenize --output=divided --eod=no text
    # As JSON the same text is one string.
    awk 'BEGIN { printf "{\"text\": \"" } { gsub(/\\/, "\\\\"); gsub(/"/, "\\\""); printf "%s\\n", $0 }
         END { print "\"}" }' text >text.jsonl
    tokenize --output=string --eod=no text.jsonl
    cmp divided.bin string.bin
    cmp divided.idx string.idx
}

@test "beginning and end tokens" {
    needs_sentencepiece
    printf 'one\ntwo\n' >text
    tokenize --output=plain --split-documents=line --eod=no text
    tokenize --output=both --split-documents=line --bos=yes text
    tokenize --output=default --split-documents=line text
    [ "$("$program" show both 1)" = "1 $("$program" show plain 1) 2" ]
    [ "$("$program" show default 1)" = "$("$program" show plain 1) 2" ]
    tokenize --output=file --bos=yes text
    [ "$("$program" show file 0 | tr ' ' '\n' | grep -c '^[12]$')" -eq 2 ]
}

@test "files, paragraphs and lines" {
    needs_sentencepiece
    printf '\xef\xbb\xbfa b\nc\n\n \t\n\nd\r\n' >text
    tokenize --output=file text
    [ "$("$program" info --json file)" != "" ]
    "$program" info file | grep -q '^documents  1$'
    run tokenize --output=paragraph --split-documents=paragraph text
    [ "$status" -eq 0 ]
    [ "$("$program" show paragraph 0 --tokenizer="$model")" = $'a b\nc' ]
    [ "$("$program" show paragraph 1 --tokenizer="$model")" = d ]
    run tokenize --output=line --split-documents=line text
    [ "$status" -eq 0 ]
    [[ $output == *"3 documents"*"3 empty documents skipped"* ]]
    [ "$("$program" show line 0 --tokenizer="$model")" = "a b" ]
    [ "$("$program" show line 2 --tokenizer="$model")" = d ]
}

@test "standard input needs a format" {
    needs_sentencepiece
    run tokenize --output=out - <<<"some text"
    [ "$status" -eq 64 ]
    [[ $output == *"--format=text"* ]]
    tokenize --output=out --format=text - <<<"some text"
    [ "$("$program" show out 0 --tokenizer="$model")" = "some text" ]
    tokenize --output=out --format=jsonl - <<<'{"text": "some text"}'
    [ "$("$program" show out 0 --tokenizer="$model")" = "some text" ]
}

@test "bad lines are named and counted, --strict stops at them" {
    needs_sentencepiece
    cat >lines.jsonl <<'END'
{"text": "good", "n": 123456789012345678901234567890}
{"text": "cut off

{"words": "no text"}
["text"]
{"text": 7}
{"text": ""}
{"text": " \n"}
{"text": "also\u0000 good", "words": "other"}
END
    run tokenize --output=out lines.jsonl
    [ "$status" -eq 0 ]
    [[ $output == *"lines.jsonl:2: not a JSON object on one line"* ]]
    [[ $output == *"lines.jsonl:4: no member \"text\""* ]]
    [[ $output == *"lines.jsonl:5: "* ]]
    [[ $output == *"lines.jsonl:6: member \"text\" is not a string"* ]]
    [[ $output == *"2 documents"*"2 empty documents skipped, 4 bad documents skipped"* ]]
    run tokenize --output=words --key=words lines.jsonl
    [[ $output == *"2 documents"* ]]
    run tokenize --output=strict --strict lines.jsonl
    [ "$status" -eq 65 ]
    [[ $output == "mtllm-data: lines.jsonl:2: "* ]]
    [ -z "$(ls strict* 2>/dev/null)" ]
    # A thousand bad lines are not a thousand messages.
    yes '{"x": 1}' | head -1000 >many.jsonl
    run tokenize --output=many many.jsonl lines.jsonl
    [ "$status" -eq 0 ]
    [ "${#lines[@]}" -lt 40 ]
    [[ $output == *"1004 bad documents"* ]]
}

@test "input without a document writes nothing" {
    needs_sentencepiece
    : >empty
    printf ' \n\n' >blank
    run tokenize --output=out empty blank
    [ "$status" -eq 65 ]
    [[ $output == *"no document in the input (2 empty"* ]]
    [ -z "$(ls out* 2>/dev/null)" ]
    echo text >text
    run tokenize --output=out empty text blank
    [ "$status" -eq 0 ]
    [[ $output == *"1 documents"*"2 empty documents skipped"* ]]
}

@test "what cannot be read or written is named" {
    needs_sentencepiece
    echo text >text
    run tokenize --output=out text missing.txt
    [ "$status" -eq 74 ]
    [[ $output == *"missing.txt"*"No such file"* ]]
    run tokenize --output=out .
    [ "$status" -eq 74 ]
    run tokenize --output=no/where text
    [ "$status" -eq 74 ]
    [[ $output == *"no/where.idx"* ]]
    run "$program" tokenize --tokenizer=missing.model --output=out text
    [ "$status" -eq 74 ]
    [[ $output == *"missing.model"* ]]
    run "$program" tokenize --tokenizer=text --output=out text
    [ "$status" -eq 65 ]
    run "$program" tokenize --tokenizer=. --output=out text
    [ "$status" -eq 74 ]
    [[ $output == *"neither tokenizer.json nor tokenizer.model"* ]]
    [ -z "$(ls out* 2>/dev/null)" ]
    cp "$model" tokenizer.model
    "$program" tokenize --tokenizer=. --output=out text
}

@test "a disk that is full leaves the older file" {
    needs_sentencepiece
    echo text >text
    tokenize --output=out text
    cp out.idx before.idx
    english 20000 >text
    run bash -c "ulimit -f 40; '$program' tokenize --tokenizer='$model' --output=out text"
    [ "$status" -eq 74 ]
    [[ $output == *"out.bin"*"File too large"* ]]
    cmp out.idx before.idx
    [ "$(ls out* | wc -l)" -eq 2 ]
}

@test "interrupted while it reads, it leaves the older file and nothing else" {
    needs_sentencepiece
    echo text >text
    tokenize --output=out text
    cp out.idx before.idx
    mkfifo pipe
    for name in INT TERM HUP INT INT; do
        # Not through a shell's &, which would have the program ignore SIGINT.
        env --default-signal=INT,HUP "$program" tokenize --tokenizer="$model" --output=out \
            --format=text pipe 3>&- &
        background=$!
        exec 4>pipe
        english 1000 >&4
        wait_for 20 compgen -G 'out.bin.partial*'
        kill -"$name" "$background"
        wait_for 20 ended "$background"
        rc=0
        wait "$background" || rc=$?
        exec 4>&-
        [ "$rc" -eq $((128 + $(kill -l "$name"))) ]
        cmp out.idx before.idx
        [ "$(ls out* | wc -l)" -eq 2 ]
    done
}

@test "info and show" {
    needs_sentencepiece
    printf 'a\n\nbb cc dd\n' >text
    tokenize --output=out --split-documents=line text
    [ "$("$program" info out | awk 'NF && $2 != "-" { print $1 }' | tr '\n' ' ')" = \
        "prefix documents sequences tokens dtype shortest mean longest size length " ]
    "$program" info --json out >info.json
    tokens=$("$program" info out | awk '$1 == "tokens" { print $2 }')
    grep -q "\"documents\": 2, .*\"tokens\": $tokens, \"dtype\": \"uint16\"" info.json
    [ "$(stat -c %s out.bin)" -eq $((2 * tokens)) ]
    run "$program" show out 2
    [ "$status" -eq 64 ]
    [[ $output == *"0 to 1"* ]]
    run "$program" show out x
    [ "$status" -eq 64 ]
}

@test "damaged token files are refused by name" {
    needs_sentencepiece
    english 100 >text
    tokenize --output=out --split-documents=line text
    cp out.bin cut.bin
    head -c 100 out.idx >cut.idx
    run "$program" info cut
    [ "$status" -eq 65 ]
    [[ $output == *"cut.idx: 100 bytes"* ]]
    cp out.idx cut.idx
    head -c 100 out.bin >cut.bin
    run "$program" info cut
    [ "$status" -eq 65 ]
    [[ $output == *"cut.bin: 100 bytes"* ]]
    run "$program" show cut 0
    [ "$status" -eq 65 ]
    run "$program" info nothing
    [ "$status" -eq 74 ]
    [[ $output == *"nothing.idx"* ]]
}

@test "merge is tokenizing the inputs together" {
    needs_sentencepiece
    english 200 >one.txt
    english 300 | tac >two.txt
    tokenize --output=one --split-documents=line one.txt
    tokenize --output=two --split-documents=line two.txt
    tokenize --output=both --split-documents=line one.txt two.txt
    "$program" merge --output=merged one two
    cmp both.bin merged.bin
    cmp both.idx merged.idx
    # Another type of token, another tokenizer.
    printf 'MMIDIDX\0\0\1\0\0\0\0\0\0\0\4\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0' >wide.idx
    printf '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0' >>wide.idx
    printf '\7\0\0\0' >wide.bin
    [ "$("$program" show wide 0)" = 7 ]
    run "$program" merge --output=mixed one wide
    [ "$status" -eq 65 ]
    [[ $output == *"wide holds int32"* ]]
    [ -z "$(ls mixed* 2>/dev/null)" ]
}

@test "a terminal shows progress, a file does not" {
    needs_sentencepiece
    command -v script >/dev/null || skip "no script (Debian: bsdutils)"
    english 5000 >text
    run script -qec "'$program' tokenize --tokenizer='$model' --output=out text" /dev/null
    [ "$status" -eq 0 ]
    [[ $output == *"MB/s"*" left"* ]]
    run tokenize --output=out text
    [[ $output != *" left"* ]]
    [ "${#lines[@]}" -eq 1 ]
}

@test "the command line says what it does not know, and what is near" {
    run "$program"
    [ "$status" -eq 64 ]
    run "$program" tokenise
    [ "$status" -eq 64 ]
    [[ $output == *"did you mean tokenize?"* ]]
    run "$program" frobnicate
    [ "$status" -eq 64 ]
    [[ $output == *"tokenize, info, show, merge and split"* ]]
    run "$program" tokenize --tokeniser=x --output=y z
    [ "$status" -eq 64 ]
    [[ $output == *"did you mean --tokenizer?"* ]]
    run "$program" tokenize --output=y z
    [ "$status" -eq 64 ]
    [[ $output == *"--tokenizer=PATH is missing"* ]]
    run "$program" tokenize --tokenizer=x z
    [ "$status" -eq 64 ]
    run "$program" tokenize --tokenizer=x --output=y
    [ "$status" -eq 64 ]
    run "$program" tokenize --tokenizer=x --output=y --bos=maybe z
    [ "$status" -eq 64 ]
    [[ $output == *"yes|no"* ]]
    run "$program" tokenize --tokenizer=x --output=y --threads=0 z
    [ "$status" -eq 64 ]
    run "$program" tokenize --tokenizer=x --output=y --strict=1 z
    [ "$status" -eq 64 ]
    run "$program" tokenize --tokenizer
    [ "$status" -eq 64 ]
    run "$program" tokenize -t x
    [ "$status" -eq 64 ]
    run "$program" info
    [ "$status" -eq 64 ]
    run "$program" info a b
    [ "$status" -eq 64 ]
    run "$program" merge a b
    [ "$status" -eq 64 ]
    run "$program" --version
    [ "$status" -eq 0 ]
    [[ $output == "mtllm-data (mtllm) "* ]]
    run "$program" --help
    [ "$status" -eq 0 ]
    for command in tokenize info show merge split; do
        [[ $output == *"  $command"* ]]
        "$program" "$command" --help | grep -q "^Usage: mtllm-data $command "
    done
    "$program" tokenize --help >/dev/full && return 1 || [ $? -eq 74 ]
}
