#!/usr/bin/env bats
# Guards: mtllm-data as a tool for corpora: a token file for each member of JSON lines.

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
    for keys in a,b,a a, , a,b/c a,b,c,d,e,f,g,h,i; do
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
        sleep 0.$((RANDOM % 3))$((RANDOM % 10))
        kill -"$signal" "$background" 2>/dev/null || true
        status=0
        wait "$background" 2>/dev/null || status=$?
        ! grep -q 'goes on behind' log || went_on=$((went_on + 1))
        [ "$status" -ne 0 ] || break
        [ "$status" -eq $((128 + $(kill -l "$signal"))) ]
        [ "$signal" = KILL ] || [ ! -s out.resume ] || grep -q 'the same command goes on' log
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
