{{/* Prefix of every object: release name, with the chart's name unless it is in there already. It
leaves room for pool, part and the hash that Kubernetes appends, in 63 characters; a longer one is
refused rather than cut, since two cut names can meet. */}}
{{- define "understudy.fullname" -}}
{{- $default := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- $name := .Values.fullnameOverride | default $default -}}
{{- if gt (len $name) 29 -}}
{{- fail (printf "the name %q is longer than 29 characters: set fullnameOverride to a shorter one" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* Labels that select a component's pods. Takes root, component and, for workers, pool. */}}
{{- define "understudy.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
understudy.dev/pool: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels of an object. Takes what understudy.selector takes. */}}
{{- define "understudy.labels" -}}
{{ include "understudy.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: understudy
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Image reference, by digest where one is set. Takes the image's values and a default tag. */}}
{{- define "understudy.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .defaultTag) -}}
{{- end -}}
{{- end -}}

{{/* Image that a service runs in. Takes root and service. */}}
{{- define "understudy.serviceImage" -}}
{{- $target := get (dict "attention" "worker" "experts" "worker" "distiller" "distiller" "triton" "triton") .service | default "router" -}}
{{- $image := .root.Values.image -}}
{{- $one := dict "repository" (printf "%s-%s" $image.repository $target) "tag" $image.tag "digest" (get $image.digests $target) -}}
{{- include "understudy.image" (dict "image" $one "defaultTag" .root.Chart.AppVersion) -}}
{{- end -}}

{{/* Name of an attention or expert StatefulSet and its headless Service. Takes root, pool, part. */}}
{{- define "understudy.worker" -}}
{{- printf "%s-%s-%s" (include "understudy.fullname" .root) .pool .part -}}
{{- end -}}

{{/* Addresses of a pool's workers as a JSON list: each pod has a name of its own in DNS, so that
callers reach every worker. Takes root, pool, part and replicas. */}}
{{- define "understudy.addresses" -}}
{{- $worker := include "understudy.worker" . -}}
{{- $addresses := list -}}
{{- range $ordinal := until (int .replicas) -}}
{{- $addresses = append $addresses (printf "%s-%d.%s:%s" $worker $ordinal $worker (include "understudy.grpcPort" nil)) -}}
{{- end -}}
{{- toJson $addresses -}}
{{- end -}}

{{/* Ports inside pods; a pod has its own address, so they are the same in every one. */}}
{{- define "understudy.grpcPort" -}}9000{{- end -}}
{{- define "understudy.metricsPort" -}}9464{{- end -}}
{{- define "understudy.httpPort" -}}8080{{- end -}}
{{- define "understudy.otlpPort" -}}4317{{- end -}}
{{- define "understudy.kvstorePort" -}}9001{{- end -}}
{{- define "understudy.kvstoreMetricsPort" -}}9465{{- end -}}
{{- define "understudy.healthPort" -}}9002{{- end -}}
{{- define "understudy.kvstoreHealthPort" -}}9003{{- end -}}

{{/* Where services send traces: the chart's collector, one of yours, or nowhere. */}}
{{- define "understudy.otlpEndpoint" -}}
{{- $receiver := include "understudy.spansGoTo" . -}}
{{- if not $receiver -}}
{{- .Values.serving.otlpEndpoint -}}
{{- else if .Values.serving.otlpEndpoint -}}
{{- fail (printf "serving.otlpEndpoint and telemetry.%s.enabled both say where traces go: leave one out, or hand the collector's traces on with telemetry.collector.exportEndpoint" $receiver) -}}
{{- else -}}
{{- printf "http://%s-%s:%s" (include "understudy.fullname" .) $receiver (include "understudy.otlpPort" .) -}}
{{- end -}}
{{- end -}}

{{/* Component of the release that services send spans to: its collector, its Jaeger, or none. */}}
{{- define "understudy.spansGoTo" -}}
{{- if .Values.telemetry.collector.enabled }}collector{{ else if .Values.telemetry.jaeger.enabled }}jaeger{{ end -}}
{{- end -}}

{{/* Where the collector sends what it keeps. */}}
{{- define "understudy.keptTracesGoTo" -}}
{{- $telemetry := .Values.telemetry -}}
{{- if and $telemetry.jaeger.enabled $telemetry.collector.exportEndpoint -}}
{{- fail "telemetry.jaeger.enabled and telemetry.collector.exportEndpoint both say where kept traces go: leave one out" -}}
{{- end -}}
{{- $jaeger := printf "%s-jaeger:%s" (include "understudy.fullname" .) (include "understudy.otlpPort" .) -}}
{{- $telemetry.jaeger.enabled | ternary $jaeger $telemetry.collector.exportEndpoint -}}
{{- end -}}

{{/* Secret with the API keys of the router: the chart's own or one of yours. */}}
{{- define "understudy.keysSecret" -}}
{{- .Values.router.keysSecret | default (printf "%s-keys" (include "understudy.fullname" .)) -}}
{{- end -}}
