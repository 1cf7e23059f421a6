# What is built in ckpt/.
