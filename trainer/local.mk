# What is built in trainer/.
