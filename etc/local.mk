dist_models_DATA += \
	etc/models/llama-tiny.ini etc/models/llama-100m.ini etc/models/tinyllama-1.1b.ini \
	etc/models/llama-2-7b.ini etc/models/llama-2-13b.ini etc/models/llama-2-70b.ini \
	etc/models/codellama-7b.ini etc/models/codellama-13b.ini etc/models/codellama-34b.ini
