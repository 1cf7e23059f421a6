# What is built in man/.
dist_man_MANS += man/h5-to-hf.1 man/hf-to-h5.1
dist_man_MANS += man/mtllm-data.1
dist_man_MANS += man/mtllm.8
dist_man_MANS += man/mtllm-ckpt.1 man/mtllm-checkpoint.5
