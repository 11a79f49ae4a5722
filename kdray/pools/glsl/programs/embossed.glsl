// Gradient noise as a surface, lit from a side.
float height(vec2 p) {
    return gradient(p) + 0.5 * gradient(2.0 * p + 0.3 * iTime);
}

void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.8, 3.5), e = vec2(0.05, 0);
    float h = height(p);
    vec3 normal = normalize(vec3(h - height(p + e.xy), h - height(p + e.yx), 0.05 / between(0, 0.8, 2.0)));
    colour = vec4(mix(ink(1), palette(h), random(2)) * lit(normal), 1);
}
