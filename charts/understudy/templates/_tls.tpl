{{/* Components that have a certificate: services, and `caller` for those who order training runs. */}}
{{- define "understudy.tlsComponents" -}}
["router", "attention", "experts", "kvstore", "controller", "distiller", "caller"]
{{- end -}}

{{/* Name of the Secret with a component's certificate. Takes root and component. */}}
{{- define "understudy.tlsSecret" -}}
{{- printf "%s-tls-%s" (include "understudy.fullname" .root) .component -}}
{{- end -}}

{{/* Not empty where services talk over TLS. Takes the root. */}}
{{- define "understudy.hasTls" -}}
{{- if ne .Values.tls.mode "off" }}true{{ end -}}
{{- end -}}

{{/* Settings of the chassis for certificates. Takes root, healthPort and hasHealth, whether probes ask
that port. */}}
{{- define "understudy.tlsSettings" -}}
{{- $hasTls := include "understudy.hasTls" .root -}}
tlsDir: {{ $hasTls | empty | ternary "" "/etc/understudy/tls" | quote }}
tlsDomain: {{ .root.Values.tls.domain }}
healthListen: {{ .hasHealth | empty | ternary "" (printf "0.0.0.0:%s" .healthPort) | quote }}
{{- end -}}

{{/* Volumes with the certificates of components that share a pod. Takes root and components. */}}
{{- define "understudy.tlsVolumes" -}}
{{- if include "understudy.hasTls" .root }}
{{- $bundle := .root.Values.tls.certManager.trustBundle }}
{{- range $component := .components }}
{{- $secret := include "understudy.tlsSecret" (dict "root" $.root "component" $component) }}
- name: tls-{{ $component }}
  {{- if and $bundle.name (eq $.root.Values.tls.mode "certManager") }}
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ $secret }}
          items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
      - configMap:
          name: {{ $bundle.name }}
          items: [{key: {{ $bundle.key }}, path: ca.crt}]
  {{- else }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}
