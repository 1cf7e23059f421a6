#!/usr/bin/env bats
# Guards: mtllm-data with large corpora: interrupted at any moment it goes on to the same bytes, and
# only where nothing has changed; compressed, damaged and endless input; several token files at once,
# cut up and put together.

load common

setup() {
    common_setup
    program=$build_dir/data/mtllm-data
    model=$source_dir/tests/golden/tokenizers/sentencepiece/tokenizer.model
    echo x > probe
    "$program" tokenize --tokenizer="$model" --output=probe probe || [ $? -ne 78 ] ||
        skip "built without SentencePiece"
    rm probe*
}

tokenize() {
    "$program" tokenize --tokenizer="$model" "$@"
}

# same A B: two token files with the same bytes.
same() {
    cmp "$1.bin" "$2.bin" && cmp "$1.idx" "$2.idx"
}

@test "several members of JSON lines: a token file each" {
    for i in $(seq 500); do
        echo "{\"title\": \"number $i\", \"body\": \"the text of $i\", \"id\": $i}"
    done > good.jsonl
    tokenize --output=title --key=title good.jsonl
    tokenize --output=body --key=body good.jsonl
    {
        head -n 200 good.jsonl
        echo '{"title": "without a body"}'
        echo '{"title": "with a body that is none", "body": 1}'
        echo '{"title": " ", "body": "\t"}'
        tail -n +201 good.jsonl
    } > lines.jsonl
    run tokenize --output=out --key=title,body lines.jsonl
    [ "$status" -eq 0 ]
    [[ $output == *'lines.jsonl:201: no member "body"'* ]]
    [[ $output == *'lines.jsonl:202: member "body" is not a string'* ]]
    [[ $output == *"1000 documents"*"2 empty documents skipped, 2 bad documents skipped"* ]]
    same title out_title_document
    same body out_body_document
    [ "$(ls out* | wc -l)" -eq 4 ]
    run tokenize --output=none --key=title,body good.jsonl "$source_dir/README.md"
    [ "$status" -eq 64 ]
    [[ $output == *"an input is plain text"* ]]
    for keys in 'a,b,a' 'a,' ',' 'a,b/c' a,b,c,d,e,f,g,h,i; do
        run tokenize --output=none --key=$keys good.jsonl
        [ "$status" -eq 64 ]
    done
    [ -z "$(ls none* 2>/dev/null)" ]
}

# words COUNT SEED: prose of that many lines, some of them empty, with other scripts in it.
words() {
    awk -v lines="$1" -v seed="$2" 'BEGIN {
        srand(seed)
        count = split("In the beginning was a word and it said nothing. na\303\257ve \316\261\316\262\316\263 \346\227\245\346\234\254\350\252\236 \320\241\320\273\320\276\320\262\320\276 \360\237\230\200 1,234.5 (x) wherefore 7:12 unto", words, " ")
        for (i = 0; i < lines; i++) {
            line = ""
            for (n = int(rand() * 14); n > 0; n--)
                line = line words[1 + int(rand() * count)] " "
            print substr(line, 1, length(line) - 1)
        }
    }'
}

# A corpus of every kind of input, with documents that are none.
make_corpus() {
    words 30000 1 > one.txt
    words 20000 2 | awk '{ printf "{\"text\": \"%s\", \"n\": %d}\n", $0, NR }' > two.jsonl
    sed -i '7000s/.*/{"text": 1}/; 15000s/.*/\xff/' two.jsonl
    words 20000 3 | gzip > three.txt.gz
    {
        words 15000 4
        printf 'bad \xc3 byte\n'
        words 15000 5
    } > four.txt
    inputs=(one.txt two.jsonl three.txt.gz four.txt)
    if "$program" tokenize --tokenizer="$model" --output=probe <(:).zst 2>&1 | grep -q 'built without'
    then
        words 20000 6 > five.txt
        inputs+=(five.txt)
    else
        words 20000 6 | zstd -q > five.txt.zst
        inputs+=(five.txt.zst)
    fi
}

recorded_anew() {
    [ -s out.resume ] && ! cmp -s out.resume before || ended "$background"
}

ended() { # a zombie, or gone
    ! grep -q '^State:.[^Z]' "/proc/$1/status" 2>/dev/null
}

# interrupted SIGNAL ARGUMENT...: tokenize, ended at a moment that nobody chose, as often as it
# takes: two times of three after it has recorded something new. Sets `times`, how often that was,
# and `went_on`, how often it did not begin anew.
interrupted() {
    local signal=$1 status
    shift
    times=0 went_on=0
    while :; do
        cp out.resume before 2>/dev/null || : > before
        env --default-signal=INT,HUP "$program" tokenize --tokenizer="$model" \
            --threads=$((1 + RANDOM % 3)) --save-interval=0 --output=out "$@" > log 2>&1 3>&- &
        background=$!
        [ $((times % 3)) = 2 ] || wait_for 60 recorded_anew
        sleep 0.0$((RANDOM % 10))
        kill -"$signal" "$background" 2>/dev/null || true
        status=0
        wait "$background" 2>/dev/null || status=$?
        ! grep -q 'goes on behind' log || went_on=$((went_on + 1))
        [ "$status" -ne 0 ] || break
        [ "$status" -eq $((128 + $(kill -l "$signal"))) ]
        # A signal may come before anything else is done, or behind it all.
        [ "$signal" = KILL ] || [ -e out.idx ] || ! grep -q 'goes on behind' log ||
            grep -q '^mtllm-data: interrupted; the same command goes on' log
        times=$((times + 1))
        [ "$times" -lt 100 ]
    done
}

@test "killed at any moment, the same command goes on: the same bytes" {
    make_corpus
    for how in file line paragraph; do
        run tokenize --output=whole --split-documents=$how --bos=yes "${inputs[@]}"
        [ "$status" -eq 0 ]
        [[ $output == *"3 bad documents skipped" ]]
        interrupted KILL --split-documents=$how --bos=yes "${inputs[@]}"
        echo "$how: $times times killed, went on $went_on times"
        [ "$times" -ge 4 ]
        [ "$went_on" -ge 3 ]
        same whole out
        grep -q '3 bad documents skipped' log
        [ "$(ls out* | tr '\n' ' ')" = "out.bin out.idx " ]
        rm out.*
    done
}

@test "interrupted by a signal, it says that the same command goes on, and that does" {
    make_corpus
    tokenize --output=whole "${inputs[@]}"
    for name in INT TERM HUP; do
        interrupted $name "${inputs[@]}"
        [ "$went_on" -ge 1 ]
        same whole out
        [ "$(ls out* | wc -l)" -eq 2 ]
        rm out.*
    done
}

@test "a record of another request, or of files that have changed, is not gone on from" {
    words 30000 1 > one.txt
    kill_it() { # with something recorded
        cp out.resume before 2>/dev/null || : > before
        "$program" tokenize --tokenizer="$model" --save-interval=0 --output=out \
            --split-documents=line one.txt "$@" > log 2>&1 3>&- &
        background=$!
        wait_for 60 recorded_anew
        kill -KILL "$background"
        wait "$background" 2>/dev/null || [ $? -eq 137 ]
    }
    # goes_on YES|NO ARGUMENT...
    goes_on() {
        local wanted=$1
        shift
        run tokenize --output=out --split-documents=line one.txt "$@"
        [ "$status" -eq 0 ]
        [[ $wanted == YES && $output == *"goes on behind"* ]] ||
            [[ $wanted == NO && $output != *"goes on behind"* ]]
        tokenize --output=whole --split-documents=line one.txt "$@"
        same whole out
        [ "$(ls out* | wc -l)" -eq 2 ]
    }
    kill_it
    goes_on YES --threads=1
    kill_it
    touch out.resume.partial # as a process leaves it that is killed while it writes
    goes_on NO --bos=yes
    kill_it
    touch out.resume.partial
    goes_on YES
    kill_it
    goes_on NO one.txt
    kill_it
    touch one.txt
    goes_on NO
    kill_it
    echo more >> one.txt
    goes_on NO
    cp "$model" other.model
    kill_it --tokenizer=other.model
    cp "$model" again.model
    printf x >> again.model
    mv again.model other.model
    run tokenize --tokenizer=other.model --output=out --split-documents=line one.txt
    [[ $output != *"goes on behind"* ]]
    goes_on NO
    # What the record speaks of is not there, or it is not whole.
    kill_it
    rm out.bin.partial
    goes_on NO
    kill_it
    truncate -s 1000 out.idx.partial
    goes_on NO
    kill_it
    printf '\1' | dd of=out.idx.partial bs=1 seek=34 conv=notrunc 2>/dev/null
    goes_on NO
    for text in '' '{' '[]' '{"version": 1}' "$(head -c 100 /dev/urandom | base64 -w0)"; do
        kill_it
        printf '%s' "$text" > out.resume
        goes_on NO
    done
    kill_it
    sed -i 's/"offset":[0-9]*/"offset":-5/' out.resume
    goes_on NO
    kill_it
    truncate -s 100 out.resume
    goes_on NO
}

@test "a disk that is full: with room again the same command goes on" {
    words 30000 1 > one.txt
    tokenize --output=whole --split-documents=line one.txt
    run bash -c "ulimit -f 600; '$program' tokenize --tokenizer='$model' --save-interval=0 \
        --split-documents=line --output=out one.txt"
    [ "$status" -eq 74 ]
    [[ $output == *"the same command goes on"*"out.bin.partial"*"File too large"* ]]
    run tokenize --output=out --split-documents=line one.txt
    [ "$status" -eq 0 ]
    [[ $output == *"goes on behind"* ]]
    same whole out
    [ "$(ls out* | wc -l)" -eq 2 ]
}

@test "two at once: the second is refused" {
    mkfifo pipe
    "$program" tokenize --tokenizer="$model" --output=out --format=text pipe 3>&- &
    background=$!
    exec 4<> pipe
    echo text >&4
    wait_for 20 test -e out.idx.partial
    echo text > text
    run tokenize --output=out text
    [ "$status" -eq 78 ]
    [[ $output == *"out: another process is writing it"* ]]
    run "$program" merge --output=out probe
    exec 4>&-
    wait "$background"
    tokenize --output=expected text
    same out expected
    [ "$(ls out* | wc -l)" -eq 2 ]
}

needs_compression() {
    command -v zstd > /dev/null || skip "no zstd"
    ! "$program" tokenize --tokenizer="$model" --output=probe probe.gz probe.zst 2>&1 |
        grep -q 'built without' || skip "built without zlib or Zstandard"
}

@test "compressed input is what was compressed" {
    : > probe.gz
    : > probe.zst
    needs_compression
    words 20000 1 > one.txt
    awk '{ printf "{\"text\": \"%s\"}\n", $0 }' one.txt > two.jsonl
    tokenize --output=plain one.txt two.jsonl
    # In one piece, and in several, of which one is empty.
    for tool in gzip zstd; do
        ending=$([ $tool = gzip ] && echo gz || echo zst)
        for file in one.txt two.jsonl; do
            $tool -q < $file > whole-$file.$ending
            { head -n 7000 $file | $tool -q; $tool -q < /dev/null; tail -n +7001 $file | $tool -q; } \
                > pieces-$file.$ending
        done
        tokenize --output=whole whole-one.txt.$ending whole-two.jsonl.$ending
        same plain whole
        tokenize --output=pieces pieces-one.txt.$ending pieces-two.jsonl.$ending
        same plain pieces
    done
    mv whole-one.txt.gz WHOLE.TXT.GZ
    truncate -s +1000 WHOLE.TXT.GZ
    tokenize --output=zeros WHOLE.TXT.GZ two.jsonl
    same plain zeros
    zstd -q --long=30 < one.txt > long.txt.zst
    tokenize --output=long long.txt.zst two.jsonl
    same plain long
}

@test "compressed input that is cut short or damaged is refused by name" {
    : > probe.gz
    : > probe.zst
    needs_compression
    words 3000 1 > one.txt
    gzip < one.txt > one.gz
    zstd -q < one.txt > one.zst
    for ending in gz zst; do
        size=$(stat -c %s one.$ending)
        for length in 0 1 5 20 $((size / 2)) $((size - 1)); do
            head -c $length one.$ending > cut.$ending
            run tokenize --output=out cut.$ending
            [ "$status" -eq 65 ]
            [[ $output == "mtllm-data: cut.$ending: cut short"* ]]
        done
        cp one.$ending bad.$ending
        printf '\377\377\377\377' | dd of=bad.$ending bs=1 seek=$((size / 2)) conv=notrunc 2>/dev/null
        run tokenize --output=out bad.$ending
        [ "$status" -eq 65 ]
        [[ $output == "mtllm-data: bad.$ending: damaged"* ]]
        cp one.txt text.$ending
        run tokenize --output=out text.$ending
        [ "$status" -eq 65 ]
        [[ $output == "mtllm-data: text.$ending: damaged, or no "* ]]
        { cat one.$ending; echo behind; } > behind.$ending
        run tokenize --output=out behind.$ending
        [ "$status" -eq 65 ]
        [[ $output == "mtllm-data: behind.$ending: "* ]]
    done
    [ -z "$(ls out* 2>/dev/null)" ]
}

@test "text that is not UTF-8 is named to the byte, and left out or refused" {
    printf 'good\nbad \xff here\nalso good\n\xe2\x82' > text
    run tokenize --output=out --split-documents=line text
    [ "$status" -eq 0 ]
    [[ $output == *"text:2: byte 0xff at offset 4 of the line is not UTF-8; skipped"* ]]
    [[ $output == *"text:4: byte 0xe2 at offset 0 of the line is not UTF-8; skipped"* ]]
    [[ $output == *"2 documents"*"2 bad documents skipped"* ]]
    run tokenize --output=strict --split-documents=line --strict text
    [ "$status" -eq 65 ]
    [[ $output == "mtllm-data: text:2: byte 0xff at offset 4 of the line is not UTF-8" ]]
    printf 'one\ntwo\n\n\nthree\nfo\xc0\xafur\n\nfive\n' > text
    run tokenize --output=out --split-documents=paragraph text
    [[ $output == *"text:6: byte 0xc0 at offset 2 of the line is not UTF-8; skipped"* ]]
    [[ $output == *"2 documents"*"1 bad documents skipped"* ]]
    # Overlong, surrogate, beyond the last, a continuation alone, cut.
    for bytes in '\xc1\x81' '\xe0\x81\x81' '\xed\xa0\x80' '\xf4\x90\x80\x80' '\xf8\x88\x80\x80\x80' \
        '\x80' '\xf0\x9f\x98' '\xe6\x97'; do
        printf "{\"text\": \"$bytes\"}\n{\"text\": \"a\"}\n" > text.jsonl
        run tokenize --output=out text.jsonl
        [ "$status" -eq 0 ]
        [[ $output == *"text.jsonl:1: byte 0x"*" at offset 10 of the line is not UTF-8; skipped"* ]]
        [[ $output == *"1 documents"*"1 bad documents skipped"* ]]
    done
    # A document of many parts is left out whole, wherever it is bad.
    words 20000 1 > one.txt
    words 20000 2 > two.txt
    for line in 1 5000 12000 20000; do
        sed "${line}s/\$/\xfe/" two.txt > bad.txt
        run tokenize --output=out --threads=2 one.txt bad.txt one.txt
        [ "$status" -eq 0 ]
        [[ $output == *"bad.txt:$line: byte 0xfe"*"the whole document is skipped"* ]]
        [[ $output == *"2 documents"*"1 bad documents skipped"* ]]
        tokenize --output=good one.txt one.txt
        same good out
    done
    printf 'a\xff\n' > text
    run tokenize --output=none text
    [ "$status" -eq 65 ]
    [[ $output == *"no document in the input"* ]]
    [ -z "$(ls none* strict* 2>/dev/null)" ]
}

@test "a line of a gigabyte, and one that is nested too deep, are named and passed over" {
    {
        echo '{"text": "first"}'
        printf '{"text": "'
        head -c 1000000000 /dev/zero | tr '\0' x
        echo '"}'
        for ((i = 0; i < 10000; i++)); do printf '{"text":'; done
        echo
        printf '{"a": '
        head -c 10000 /dev/zero | tr '\0' '['
        echo '}'
        echo '{"text": "last"}'
    } | (
        ulimit -v 1500000
        "$program" tokenize --tokenizer="$model" --format=jsonl --threads=1 --output=out - > log 2>&1
    )
    cat log
    grep -q -- '-:2: this line is longer than 268435456 bytes' log
    grep -q -- '-:3: not a JSON object on one line (maximum parsing depth reached' log
    grep -q -- '-:4: not a JSON object on one line (maximum parsing depth reached' log
    grep -q '2 documents, .*3 bad documents skipped' log
    # Of text, with a paragraph that is too long though none of its lines is.
    {
        printf 'first\n\n'
        for i in 1 2 3; do
            head -c 100000000 /dev/zero | tr '\0' x
            echo
        done
        printf '\nlast\n'
    } > text
    run tokenize --output=out --split-documents=paragraph text
    [ "$status" -eq 0 ]
    [[ $output == *"text:3: this paragraph is longer than 268435456 bytes"* ]]
    [[ $output == *"2 documents"*"1 bad documents skipped"* ]]
    rm text
}

@test "split gives what training takes, and merge brings it together again" {
    words 3000 1 > one.txt
    tokenize --output=one --split-documents=line one.txt
    documents=$("$program" info one | awk '$1 == "documents" { print $2 }')
    run "$program" split --split=90,7,3 one
    [ "$status" -eq 0 ]
    [ "${#lines[@]}" -eq 3 ]
    train=$((documents * 90 / 100))
    found=$("$program" info one_train | awk '$1 == "documents" { print $2 }')
    [ "$found" -ge "$train" ] && [ "$found" -le $((train + 1)) ]
    [ "$("$program" show one_valid 0)" = "$("$program" show one "$found")" ]
    "$program" merge --output=again one_train one_valid one_test
    same one again
    # A part of nothing is not written, and an older one of that name stays.
    run "$program" split --split=1,0,1 --output=two one
    [ "$status" -eq 0 ]
    [[ $output == *"two_valid: no document, not written"* ]]
    [ "$(ls two_* | tr '\n' ' ')" = "two_test.bin two_test.idx two_train.bin two_train.idx " ]
    run "$program" split --split=1,x one
    [ "$status" -eq 64 ]
    run "$program" split one
    [ "$status" -eq 64 ]
    [[ $output == *"--split=969,30,1"* ]]
}

@test "conversations: tokens and roles are split, merged and described together" {
    "$build_dir/tests/make_tokens" talk 300 50 1 chat 40
    "$build_dir/tests/make_tokens" more 300 20 2 chat 40
    "$program" merge --output=all talk more
    [ "$(ls all* | tr '\n' ' ')" = "all-role.bin all-role.idx all-text.bin all-text.idx " ]
    cat talk-role.bin more-role.bin | cmp - all-role.bin
    cat talk-text.bin more-text.bin | cmp - all-text.bin
    "$program" split --split=5,1,1 all
    "$program" merge --output=again all_train all_valid all_test
    same all-text again-text
    same all-role again-role
    # od sees the roles as they are.
    trained=$(od -An -v -w2 -tu2 all-role.bin | awk '$1 == 2 { n++ } END { print n }')
    "$program" info all | grep -q "^trained .*($trained tokens)"
    "$program" info --json all | grep -q "\"trained\": $trained, "
    "$program" info all-text | grep -q '^documents  70$'
    cp all-text.idx odd-text.idx
    cp all-text.bin odd-text.bin
    cp talk-role.idx odd-role.idx
    cp talk-role.bin odd-role.bin
    for command in info "split --split=1,1" "merge --output=none"; do
        run "$program" $command odd
        [ "$status" -eq 65 ]
        [[ $output == *"they are no pair"* ]]
    done
    run "$program" merge --output=none all all-text
    [ "$status" -eq 65 ]
    [[ $output == *"only files of a kind are merged"* ]]
    [ -z "$(ls none* 2>/dev/null)" ]
}

# number BYTES VALUE: little-endian.
number() {
    local i byte
    for ((i = 0; i < 8 * $1; i += 8)); do
        printf -v byte '\\x%02x' $((($2 >> i) & 255))
        printf "$byte"
    done
}

# token_file PREFIX CODE WIDTH "LENGTH..." "START...": tokens are 1, 2, 3 and so on.
token_file() {
    local length offset=0 tokens=0 i
    {
        printf 'MMIDIDX\0\0'
        number 8 1
        number 1 "$2"
        number 8 $(wc -w <<< "$4")
        number 8 $(wc -w <<< "$5")
        for length in $4; do number 4 "$length"; done
        for length in $4; do number 8 $offset; offset=$((offset + length * $3)); done
        for length in $5; do number 8 "$length"; done
    } > "$1.idx"
    for length in $4; do tokens=$((tokens + length)); done
    for ((i = 1; i <= tokens; i++)); do number "$3" $i; done > "$1.bin"
}

@test "merge and split keep documents of several sequences, and every type of token" {
    for type in "1 1" "2 1" "3 2" "4 4" "5 8" "8 2"; do
        token_file one $type "3 1 2 4 0" "0 2 2 5"
        token_file two $type "1 2" "0 1 2"
        "$program" merge --output=both one two
        token_file expected $type "3 1 2 4 0 1 2" "0 2 2 5 6 7"
        cmp expected.idx both.idx
        cat one.bin two.bin | cmp - both.bin
        "$program" split --split=3,2,0 both
        "$program" merge --output=again both_train both_test 2>/dev/null ||
            "$program" merge --output=again both_train both_valid
        same both again
    done
    # A document index of nothing but 0, as Megatron-LLM writes it: each sequence is a document.
    token_file single 8 2 "3 1 2" "0"
    "$program" merge --output=out single
    token_file expected 8 2 "3 1 2" "0 1 2 3"
    same expected out
    token_file wide 5 8 "3" "0 1"
    run "$program" merge --output=none single wide
    [ "$status" -eq 65 ]
    [[ $output == *"single holds uint16 and wide holds int64"* ]]
    # Tokens beyond 32 bits are copied as they are.
    number 8 $((1 << 40)) > wide.bin
    number 8 -1 >> wide.bin
    number 8 7 >> wide.bin
    "$program" merge --output=out wide
    cmp wide.bin out.bin
}
