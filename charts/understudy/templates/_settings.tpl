{{/* Pools that run here, with the top-level defaults of their parts merged in, and with their entry of
`scaling.pools` as `scaling` where they are sized, as a YAML list. */}}
{{- define "understudy.pools" -}}
{{- $pools := list -}}
{{- $scaled := include "understudy.scaledPools" . | fromYaml -}}
{{- $names := list -}}
{{- include "understudy.checkPools" . -}}
{{- range $pool := .Values.pools -}}
{{- if not (include "understudy.isExternal" $pool) -}}
{{- $names = append $names $pool.name -}}
{{- $parts := dict -}}
{{- range $part := list "attention" "experts" "kvstore" -}}
{{- $_ := set $parts $part (mustMergeOverwrite (index $.Values $part | deepCopy) (index $pool $part | default dict)) -}}
{{- end -}}
{{- $pools = append $pools (merge $parts (dict "scaling" (index $scaled $pool.name | default dict)) $pool) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $scaled -}}
{{- if not (has $name $names) -}}
{{- fail (printf "scaling.pools names %q, which is none of pools that run here: take it out" $name) -}}
{{- end -}}
{{- end -}}
{{- toYaml $pools -}}
{{- end -}}

{{/* Not empty for a pool behind engines of somebody else. Takes the pool. */}}
{{- define "understudy.isExternal" -}}
{{- if .external }}{{ if .external.urls }}true{{ end }}{{ end -}}
{{- end -}}

{{/* Refuses pools that are neither here nor elsewhere, or both. Takes the root. */}}
{{- define "understudy.checkPools" -}}
{{- $names := list -}}
{{- range $pool := .Values.pools -}}
{{- if has $pool.name $names -}}
{{- fail (printf "two pools are named %q: give every pool a name of its own" $pool.name) -}}
{{- end -}}
{{- $names = append $names $pool.name -}}
{{- if include "understudy.isExternal" $pool -}}
{{- range $key := list "modelName" "model" "ffn" "adapters" -}}
{{- if index $pool $key }}{{ fail (printf "pools: %q is external and has %s: take it out, or take external.urls out" $pool.name $key) }}{{ end -}}
{{- end -}}
{{- if not (and $pool.external.model $pool.external.positionParameters) -}}
{{- fail (printf "pools: %q is external and needs external.model and external.positionParameters" $pool.name) -}}
{{- end -}}
{{- else if not (and $pool.modelName $pool.model $pool.ffn) -}}
{{- fail (printf "pools: %q needs modelName, model and ffn, or external.urls" $pool.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Entry of a pool behind engines in the router's setting. Takes root and pool. */}}
{{- define "understudy.externalEntry" -}}
{{- $external := .pool.external -}}
{{- $entry := dict
      "name" .pool.name
      "kind" "openai"
      "urls" $external.urls
      "model" $external.model
      "position_parameters" (int64 $external.positionParameters)
      "version_dir" (include "understudy.path" (dict "root" .root "path" (.pool.versionDir | default ""))) -}}
{{- if ($external.apiKeySecret | default dict).name }}{{ $_ := set $entry "key_file" (printf "/etc/understudy/engine-keys/%s/key" .pool.name) }}{{ end -}}
{{- if ($external.caConfigMap | default dict).name }}{{ $_ := set $entry "ca_file" (printf "/etc/understudy/engine-ca/%s/ca.crt" .pool.name) }}{{ end -}}
{{- with $external.maxContextTokens }}{{ $_ := set $entry "max_context_tokens" (int64 .) }}{{ end -}}
{{- with $external.logprobs }}{{ $_ := set $entry "logprobs" . }}{{ end -}}
{{- with $external.connectTimeoutS }}{{ $_ := set $entry "connect_timeout_s" . }}{{ end -}}
{{- with $external.idleTimeoutS }}{{ $_ := set $entry "idle_timeout_s" . }}{{ end -}}
{{- toJson $entry -}}
{{- end -}}

{{/* Pools behind engines, as a YAML list. Takes the root. */}}
{{- define "understudy.externalPools" -}}
{{- $pools := list -}}
{{- range $pool := .Values.pools -}}
{{- if include "understudy.isExternal" $pool }}{{ $pools = append $pools $pool }}{{ end -}}
{{- end -}}
{{- toYaml $pools -}}
{{- end -}}

{{/* All settings of one service, chart-made and from values; names follow services/X/settings.py. */}}
{{- define "understudy.attentionSettings" -}}
{{- $isRemote := eq .pool.ffn "remote" -}}
{{- $adapters := list -}}
{{- range $name, $path := .pool.adapters -}}
{{- $adapters = append $adapters (printf "%s=%s" $name (include "understudy.path" (dict "root" $.root "path" $path))) -}}
{{- end -}}
{{- toYaml (merge (dict
      "pool" .pool.name
      "model" (include "understudy.path" (dict "root" .root "path" .pool.model))
      "tokenizer" (include "understudy.path" (dict "root" .root "path" .pool.attention.settings.tokenizer))
      "modelName" .pool.modelName
      "adapters" (join "," $adapters)
      "ffn" .pool.ffn
      "placement" ($isRemote | ternary (printf "%s-controller:%s" (include "understudy.fullname" .root) (include "understudy.grpcPort" .root)) "")
      "kvstore" (printf "127.0.0.1:%s" (include "understudy.kvstorePort" .root))) .pool.attention.settings) -}}
{{- end -}}

{{- define "understudy.expertsSettings" -}}
{{- $hasTriton := include "understudy.hasTriton" .pool | empty | not -}}
{{- $settings := merge (dict "tritonSharedMemory" $hasTriton) .pool.experts.settings -}}
{{- if $hasTriton }}{{ $_ := set $settings "triton" (include "understudy.tritonAddress" .) }}{{ end -}}
{{- toYaml (merge (dict "model" (include "understudy.path" (dict "root" .root "path" .pool.model))) $settings) -}}
{{- end -}}

{{- define "understudy.kvstoreSettings" -}}
{{- $redis := include "understudy.redisUrl" (dict "root" .root "role" "kv") | fromYaml -}}
{{- toYaml (merge (dict "redisUrl" $redis.url "redisCa" (include "understudy.redisCa" (dict "root" .root "role" "kv"))) .pool.kvstore.settings) -}}
{{- end -}}

{{- define "understudy.controllerSettings" -}}
{{- $pools := list -}}
{{- range $pool := include "understudy.pools" . | fromYamlArray -}}
{{- if eq $pool.ffn "remote" -}}
{{- $scope := dict "root" $ "pool" $pool "part" "experts" -}}
{{- $part := dict "root" $ "pool" $pool.name "part" "experts" "replicas" (include "understudy.mostReplicas" $scope) -}}
{{- if hasPrefix "deployments/" (include "understudy.workload" $scope) -}}
{{- $pools = append $pools (dict "pool" $pool.name "replicas" (printf "k8s:%s/%s:grpc" $.Release.Namespace (include "understudy.worker" $part))) -}}
{{- else -}}
{{- $pools = append $pools (dict "pool" $pool.name "replicas" (include "understudy.addresses" $part | fromJsonArray)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml (merge (dict "pools" (toJson $pools)) .Values.controller.settings) -}}
{{- end -}}

{{/* UNDERSTUDY_ROUTER_POOLS. Entries are joined as text: a number that was parsed once is a float. */}}
{{- define "understudy.poolsSetting" -}}
{{- $entries := list -}}
{{- range $pool := include "understudy.pools" . | fromYamlArray -}}
{{- $replicas := include "understudy.mostReplicas" (dict "root" $ "pool" $pool "part" "attention") -}}
{{- $workers := include "understudy.addresses" (dict "root" $ "pool" $pool.name "part" "attention" "replicas" $replicas) | fromJsonArray -}}
{{- $entries = append $entries (toJson (dict "name" $pool.name "workers" $workers "version_dir" (include "understudy.path" (dict "root" $ "path" ($pool.versionDir | default ""))))) -}}
{{- end -}}
{{- range $pool := include "understudy.externalPools" . | fromYamlArray -}}
{{- $entries = append $entries (include "understudy.externalEntry" (dict "root" $ "pool" $pool)) -}}
{{- end -}}
{{- printf "[%s]" (join "," $entries) -}}
{{- end -}}

{{- define "understudy.routerSettings" -}}
{{- $tokenizer := include "understudy.pools" . | fromYamlArray | empty | ternary "" .Values.router.settings.tokenizer -}}
{{- $redis := include "understudy.redisUrl" (dict "root" . "role" "control") | fromYaml -}}
{{- toYaml (merge (dict
      "pools" (include "understudy.poolsSetting" .)
      "httpListen" (printf "0.0.0.0:%s" (include "understudy.httpPort" .))
      "tokenizer" (include "understudy.path" (dict "root" . "path" $tokenizer))
      "tlsDir" (empty .Values.router.tls.secretName | ternary "" "/etc/understudy/caller-tls")
      "controlRedis" $redis.url
      "controlRedisCa" (include "understudy.redisCa" (dict "root" . "role" "control"))
      "controllers" (ternary (printf "%s-controller:%s" (include "understudy.fullname" .) (include "understudy.grpcPort" .)) "" (and (include "understudy.controllerSizes" . | empty | not) (not .Values.scaling.dryRun)))
      "allowOpen" false
      "apiKeys" "@/etc/understudy/keys/api-keys.json"
      "journalKey" "@/etc/understudy/keys/journal-key"
      "tenantSecret" "@/etc/understudy/keys/tenant-secret") (omit .Values.router.settings "tokenizer")) -}}
{{- end -}}

{{- define "understudy.distillerSettings" -}}
{{- toYaml (merge (dict "directory" "/var/lib/understudy") .Values.distiller.settings) -}}
{{- end -}}
