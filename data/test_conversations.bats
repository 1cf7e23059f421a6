# Guards: conversations become a pair of token files that belong together, the same bytes for any
# number of threads; show says what is learned; what cannot be one is named and counted.

setup() {
    source_directory=$(cd "$srcdir" && pwd)
    program=$builddir/data/mtllm-data
    model=$source_directory/tests/golden/tokenizers/sentencepiece/tokenizer.model
    export MTLLM_TEMPLATES=$source_directory/etc/templates
    cd "$BATS_TEST_TMPDIR"
    run "$program" tokenize --tokenizer="$model" --output=probe /dev/null
    [ "$status" -ne 78 ] || skip "built without SentencePiece"
    cat > chats.jsonl <<'END'
{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
{"messages": [{"role": "user", "content": "Hi"}]}
{"messages": "none"}
{"conversations": [{"from": "human", "value": "More"}, {"from": "gpt", "value": "No </s>"}]}
END
}

chat() {
    "$program" tokenize --tokenizer="$model" --chat-template=llama2 --output=out "$@" chats.jsonl
}

@test "a pair of token files" {
    run chat
    [ "$status" -eq 0 ]
    [[ $output == *"chats.jsonl:2: nothing in it is to be learned"* ]]
    [[ $output == *'chats.jsonl:3: member "messages" is not a list'* ]]
    [[ $output == *"out: 2 documents, "*" tokens (uint16)"*", 2 bad documents skipped" ]]
    [ ! -e out.idx ]
    [ "$("$program" info out-text | grep -v '^prefix')" = \
        "$("$program" info out-role | grep -v '^prefix')" ]
    "$program" info out-text | grep -qx 'documents  2'
}

@test "show marks what is learned" {
    chat
    [ "$("$program" show out 0 --tokenizer="$model")" = "<s>[INST] Hi [/INST]⟦ Yes </s>⟧" ]
    [ "$("$program" show out 1 --tokenizer="$model")" = "<s>[INST] More [/INST]⟦ No </s> </s>⟧" ]
    [[ $("$program" show out 0) == "1 574 "*" 2881 ⟦1871 318 2836 2⟧" ]]
    script -qc "'$program' show out 0 --tokenizer='$model'" /dev/null > terminal
    [[ $(< terminal) == *"[/INST]"$'\e[1;32m'" Yes </s>"$'\e[0m'* ]]
    "$program" show out-text 0 --tokenizer="$model" | grep -qF "[INST] Hi [/INST] Yes"
    cp chats.jsonl others.jsonl
    "$program" tokenize --tokenizer="$model" --output=out-role --format=text others.jsonl
    run "$program" show out 0
    [ "$status" -eq 65 ]
    [[ $output == *"out-text has 2 sequences and out-role has 1; they are no pair" ]]
}

@test "any number of threads gives the same bytes" {
    for i in {1..3000}; do
        printf '{"input": "What is %d?", "output": "It is %d, and not %d."}\n' $i $((i * i)) $i
    done > chats.jsonl
    chat --threads=1
    sha256sum out-text.* out-role.* > sums
    for threads in 2 5; do
        chat --threads=$threads
        sha256sum --quiet -c sums
    done
}

# begun ARGUMENT...: tokenize, interrupted after it has recorded how far it came.
begun() {
    rm -f out-*
    "$program" tokenize --tokenizer="$model" --output=out --save-interval=0 "$@" chats.jsonl \
        >/dev/null 2>&1 3>&- &
    for i in {1..600}; do
        [ ! -s out-text.resume ] || break
        sleep 0.05
    done
    kill "$!"
    ! wait "$!"
    [ -s out-text.resume ]
}

@test "the same command goes on, unless the template or a list of tokens changed" {
    for i in {1..60000}; do
        printf '{"input": "What is %d?", "output": "It is %d, and not %d."}\n' $i $((i * i)) $i
    done > chats.jsonl
    sed 's/^text = {bos}/text = {bos}<|x|>/' "$MTLLM_TEMPLATES/llama2.ini" > own.ini
    echo "<|x|>" > tokens
    own=(--chat-template=own.ini --add-tokens=@tokens)
    chat "${own[@]}"
    sha256sum out-text.bin out-text.idx out-role.bin out-role.idx > sums
    begun "${own[@]}"
    run chat "${own[@]}"
    [[ $output == *"goes on behind"* ]]
    sha256sum --quiet -c sums
    [ "$(ls out-* | wc -l)" -eq 4 ]
    begun "${own[@]}"
    echo "# another" >> own.ini
    run chat "${own[@]}"
    [[ $output != *"goes on behind"* ]]
    sha256sum --quiet -c sums
    begun "${own[@]}"
    echo "<|y|>" >> tokens
    run chat "${own[@]}"
    [[ $output != *"goes on behind"* ]]
    sha256sum --quiet -c sums
}

@test "tokens around a conversation, and keys" {
    echo '{"q": "Hi", "a": "Yes", "s": "Be"}' > chats.jsonl
    chat --bos=yes --eod=yes --question-key=q --answer-key=a --system-key=s
    [[ $("$program" show out-text 0) == "1 1 574 "*" 2836 2 2" ]]
    [[ $("$program" show out-role 0) == "0 0 0 "*" 2 2 0" ]]
    "$program" show out 0 --tokenizer="$model" | grep -q "^Be$"
    run "$program" tokenize --tokenizer="$model" --output=out --answer-key=a chats.jsonl
    [ "$status" -eq 64 ]
    [[ $output == *"--chat-template, which is missing" ]]
}

@test "tokens behind the vocabulary" {
    tokens="<|im_start|>,<|im_end|>"
    run "$program" tokenize --tokenizer="$model" --chat-template=chatml --output=out chats.jsonl
    [ "$status" -eq 78 ]
    [[ $output == *"chatml.ini:"*"no token <|im_start|>"*"--add-tokens"* ]]
    chat --chat-template=chatml --add-tokens="$tokens"
    [[ $("$program" show out-text 0) == "3000 "*" 3001 2836 13" ]]
    "$program" show out 0 --tokenizer="$model" --add-tokens="$tokens" | grep -qx "⟦Yes<|im_end|>⟧"
    # As hf-to-h5 leaves them in a model.
    mkdir hf
    cp "$model" hf
    echo '{"<|im_start|>": 3000, "<|im_end|>": 3001}' > hf/added_tokens.json
    mv out-text.bin before
    "$program" tokenize --tokenizer=hf --chat-template=chatml --output=out chats.jsonl
    cmp before out-text.bin
    "$program" show out 0 --tokenizer=hf | grep -qx "⟦Yes<|im_end|>⟧"
    "$program" tokenize --tokenizer=hf --add-tokens="<x>" --chat-template=chatml --output=out \
        chats.jsonl
    cmp before out-text.bin
    echo '{"<|im_start|>": "x"}' > hf/added_tokens.json
    run "$program" tokenize --tokenizer=hf --chat-template=chatml --output=out chats.jsonl
    [ "$status" -eq 65 ]
    [[ $output == *"hf/added_tokens.json: token <|im_start|>: no id"* ]]
}

@test "what cannot be a conversation" {
    run chat --strict
    [ "$status" -eq 65 ]
    [[ $output == *"chats.jsonl:2: nothing in it is to be learned"* ]]
    echo text > chats.txt
    run "$program" tokenize --tokenizer="$model" --chat-template=llama2 --output=new chats.txt
    [ "$status" -eq 64 ]
    [[ $output == *"--chat-template: an input is plain text"* ]]
    run chat --chat-template=lama2
    [ "$status" -eq 64 ]
    [[ $output == *"known in $MTLLM_TEMPLATES: chatml, llama2, llama3, mistral, plain"* ]]
    printf '[template]\n[user]\ntext = {contents}\n' > own.ini
    run chat --chat-template=own.ini
    [ "$status" -eq 65 ]
    [[ $output == *"own.ini:3: text: "* ]]
}
