dist_models_DATA += \
	etc/models/llama-tiny.ini etc/models/llama-100m.ini etc/models/tinyllama-1.1b.ini \
	etc/models/llama-2-7b.ini etc/models/llama-2-13b.ini etc/models/llama-2-70b.ini \
	etc/models/codellama-7b.ini etc/models/codellama-13b.ini etc/models/codellama-34b.ini \
	etc/models/codellama-70b.ini etc/models/falcon-180b.ini etc/models/falcon-40b.ini \
	etc/models/falcon-7b.ini etc/models/llama-13b.ini etc/models/llama-3-70b.ini \
	etc/models/llama-3-8b.ini etc/models/llama-3.1-405b.ini etc/models/llama-3.1-70b.ini \
	etc/models/llama-3.1-8b.ini etc/models/llama-3.2-1b.ini etc/models/llama-3.2-3b.ini \
	etc/models/llama-30b.ini etc/models/llama-65b.ini etc/models/llama-7b.ini \
	etc/models/mistral-7b-v0.1.ini etc/models/mistral-7b-v0.2.ini etc/models/mistral-7b-v0.3.ini \
	etc/models/qwen2.5-0.5b.ini etc/models/qwen2.5-7b.ini

dist_templates_DATA += \
	etc/templates/chatml.ini etc/templates/llama2.ini etc/templates/llama3.ini \
	etc/templates/mistral.ini etc/templates/plain.ini

# For the site to look at, and to link or copy to where its Slurm reads them: mtllm(8).
plugstackdir = $(pkgdatadir)/plugstack.conf.d
dist_plugstack_DATA = etc/plugstack.conf.d/mtllm.conf
dist_pkgdata_DATA = etc/cli_filter.lua

# The site's own settings outlive an upgrade.
EXTRA_DIST += etc/mtllm.conf
install-data-local:
	$(MKDIR_P) '$(DESTDIR)$(confdir)'
	test -e '$(DESTDIR)$(confdir)/mtllm.conf' || \
		$(INSTALL_DATA) '$(srcdir)/etc/mtllm.conf' '$(DESTDIR)$(confdir)/mtllm.conf'
uninstall-local:
	! cmp -s '$(srcdir)/etc/mtllm.conf' '$(DESTDIR)$(confdir)/mtllm.conf' || \
		rm -f '$(DESTDIR)$(confdir)/mtllm.conf'
